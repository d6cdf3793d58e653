"""What a user sees of others in lists and in the audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.running_core import OTHER_USER, RunningCore, Stubs
from tests.integration.victim import Victim

ROOT = Path(__file__).parents[2]

LOOK = """
import json, sys
from tests.integration.running_core import become_other_user
from vmm_client import connect
become_other_user(int(sys.argv[2]))
with connect(sys.argv[1]) as core:
    totals = core.totals()
    print(json.dumps({
        "sessions": [session.name for session in core.sessions()],
        "vcpus": [vcpu.name for session in core.sessions() for vcpu in core.vcpus(session.name)],
        "records": [record.name for record in core.records()],
        "totals": [totals.live, totals.created, totals.sessions, totals.clients],
        "core": [totals.engine_processes, totals.extra_fds],
    }))
"""


def look(core: RunningCore, uid: int) -> dict[str, list[object]]:
    """What a process of `uid` sees."""
    completed = subprocess.run(
        [sys.executable, "-c", LOOK, core.socket, str(uid)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    seen: dict[str, list[object]] = json.loads(completed.stdout)
    return seen


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_user_sees_what_is_his(core: RunningCore, stubs: Stubs) -> None:
    with Victim(core, "soft") as victim:
        same_user = look(core, OTHER_USER)
        assert same_user["sessions"] == [victim.session]
        assert same_user["vcpus"] == [victim.vcpu]
        assert same_user["records"] == [victim.dataspace]
        assert same_user["totals"] == [1, 1, 1, 2]
        assert same_user["core"] == [0, 0]
        stranger = look(core, OTHER_USER + 1)
        assert stranger["sessions"] == []
        assert stranger["records"] == []
        assert stranger["totals"] == [0, 0, 0, 1]
        assert look(core, 0)["sessions"] == [victim.session]
    assert stubs.totals().clients == 1


STEAL = """
import sys
from tests.integration.running_core import become_other_user
from vmm_client import connect
from vmm_client.errors import Refused
become_other_user(int(sys.argv[2]))
with connect(sys.argv[1]) as core:
    try:
        core.vcpus(sys.argv[3])
    except Refused as refused:
        print(refused.reason)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_stranger_cannot_ask_about_vcpus(core: RunningCore, stubs: Stubs) -> None:
    with Victim(core, "soft") as victim:
        completed = subprocess.run(
            [sys.executable, "-c", STEAL, core.socket, str(OTHER_USER + 1), victim.session],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert completed.stdout == "NOT_FOUND\n"


LOOK_BACK = """
import json, sys
from itertools import takewhile
from tests.integration.running_core import become_other_user
from vmm_client import connect
from vmm_client.errors import Refused
become_other_user(int(sys.argv[2]))
other, name = int(sys.argv[3]), sys.argv[4]
def history(core):
    try:
        return len(core.history(name).events)
    except Refused as refused:
        return refused.reason
with connect(sys.argv[1]) as core:
    mine = core.create_ram(4096).name
    seen = takewhile(lambda message: message.event.subject != mine, core.watch(1))
    print(json.dumps({
        "events": sorted({event.subject.partition("/")[0] for event in core.events()}),
        "of victim": len(list(core.events(subject=name))),
        "asked": [len(list(core.events(uid=other))), len(list(core.records(uid=other)))],
        "history": history(core),
        "uids": [group.group for group in core.totals("uid").groups],
        "clients": len(core.totals("client").groups),
        "sessions": len(core.totals("session").groups),
        "kinds": {group.group: group.live for group in core.totals("kind").groups},
        "snapshot": len(next(core.watch()).snapshot.records),
        "watched": sorted({message.event.subject.partition("/")[0] for message in seen}),
    }))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_a_stranger_learns_nothing_from_the_audit(core: RunningCore) -> None:
    stranger = OTHER_USER + 1

    def look_back(uid: int, other: int) -> dict[str, object]:
        arguments = [str(core.socket), str(uid), str(other), victim.dataspace]
        completed = subprocess.run(
            [sys.executable, "-c", LOOK_BACK, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        seen: dict[str, object] = json.loads(completed.stdout)
        return seen

    with Victim(core, "soft") as victim:
        assert look_back(stranger, OTHER_USER) == {
            "events": ["clients", "dataspaces"],
            "of victim": 0,
            "asked": [0, 0],
            "history": "NOT_FOUND",
            "uids": [str(stranger)],
            "clients": 1,
            "sessions": 0,
            "kinds": {"ram": 1},
            "snapshot": 1,
            "watched": ["clients"],
        }
        same_user = look_back(OTHER_USER, stranger)
        assert same_user["of victim"] == same_user["history"] != 0
        assert same_user["asked"] == [0, 0]
        assert (same_user["uids"], same_user["clients"]) == ([str(OTHER_USER)], 2)
        assert same_user["watched"] == ["clients", "dataspaces", "sessions"]
        auditor = look_back(0, OTHER_USER)
        assert auditor["uids"] == ["0", str(OTHER_USER)]
        assert isinstance(auditor["asked"], list)
        assert 0 not in auditor["asked"]
