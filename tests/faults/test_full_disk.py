"""A full disk under the audit log of a core that serves: nothing is made, what ends is ended, machines
run on; with room again core goes on by itself, and the log lacks nothing that anybody was told."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vmsession.v1.dataspace_pb2 import CreateDataspaceRequest, FreeDataspaceRequest

from core_service.audit import Query, verify_chain
from tests.faults.bystander import Bystander
from tests.integration.running_core import ROOT, RunningCore
from tests.integration.waiting import eventually
from tests.unit.test_audit_failure import Disk, small_disk
from vmm_client import Connection, connect
from vmm_client.errors import Refused
from vmm_client.health import serving

PAGE = 4096
MIB = 16  # the log of SQLite takes 4 before it is written back
BEFORE = 10
MOST = 5000  # dataspaces that surely do not fit into 1 MiB of log
SICK = {
    "core": False,
    "CoreService": True,
    "VmSessionService": False,
    "DataspaceService": False,
    "AuditService": True,
}
RECOVERS_SECONDS = 5.0  # the log is tried again each quarter of a second


@contextmanager
def core_on(disk: Disk, *options: str) -> Iterator[RunningCore]:
    core = RunningCore("--audit-directory", str(disk.directory), *options)
    try:
        yield core
    finally:
        core.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path, MIB) as disk:
        yield disk


def create(client: Connection, number: int) -> str:
    """A dataspace, by a request of this number."""
    request = CreateDataspaceRequest(size=PAGE, request_id=f"{number}")
    return str(client.rpc.call(client.dataspaces.CreateDataspace, request).dataspace.name)


def make_until_full(client: Connection, disk: Disk) -> list[str]:
    """What core said that it made; the next one it may have made, but has not on record."""
    made = [create(client, number) for number in range(BEFORE)]
    disk.fill()
    with pytest.raises(Refused) as refused:
        made.extend(create(client, number) for number in range(BEFORE, MOST))
    assert refused.value.reason == "AUDIT_FAILURE"
    return made


def free(client: Connection, name: str) -> None:
    """That it is freed is told only when it is on record."""
    client.rpc.call(client.dataspaces.FreeDataspace, FreeDataspaceRequest(name=name))


def serves(core: RunningCore) -> dict[str, bool]:
    return serving(str(core.socket))


def must_have_all(directory: Path, names: list[str]) -> None:
    """The log of a core that stopped: these names, an end for all, and one chain."""
    checked = verify_chain(directory)
    assert checked.discrepancies == []
    log = Query(directory)
    assert [each for each in log.totals() if each.created != each.ended] == []
    for name in names:
        assert [each.event.kind.value for each in log.history(name)] == ["created", "freed"], name


def test_core_serves_through_a_full_disk(disk: Disk) -> None:
    with core_on(disk) as core, Bystander(core.socket) as bystander:
        with connect(str(core.socket)) as client:
            before = client.totals().live
            made = make_until_full(client, disk)
            for refused in (
                lambda: client.create_session("soft"),
                lambda: client.create_ram(PAGE),
                lambda: free(client, made[0]),
            ):
                with pytest.raises(Refused) as caught:
                    refused()
                assert caught.value.reason == "AUDIT_FAILURE"
            assert client.totals().live == before + len(made)  # one more, of which one is freed
            assert client.totals().sessions == 1
            bystander.must_run()
            assert serves(core) == SICK
            disk.make_room()
            eventually(lambda: serves(core) == dict.fromkeys(SICK, True), limit=RECOVERS_SECONDS)
            last = create(client, len(made))  # the one that was under way: made once
            assert client.totals().live == before + len(made)
            assert not core.log().count("Traceback"), core.log()
            bystander.must_go_on()
            for name in (*made[1:], last):
                free(client, name)
            client.create_session("soft").close()
            assert client.totals().live == before
        bystander.leaves()
        core.stop()
    must_have_all(disk.directory, [*made, last])


def test_core_is_killed_while_the_disk_is_full(disk: Disk) -> None:
    """Machines run on under the keeper; no core starts before there is room, and says why; what it then
    finds is what clients were told."""
    with core_on(disk, "--keep", "60") as core, Bystander(core.socket) as bystander:
        with connect(str(core.socket)) as client:
            made = make_until_full(client, disk)
            core.kill()
            next_one = subprocess.run(
                core.command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
            )
            assert next_one.returncode == 1
            assert "vmcore: the audit log cannot be written" in next_one.stderr
            bystander.must_run()
            disk.make_room()
            core.restart(signal.SIGKILL)
            bystander.must_go_on()
            core.must_agree()
            last = create(client, len(made))  # was not on record: ended, and made again
            alive = {each.name for each in client.records(alive_only=True) if not each.origin}
            assert {*made, last} <= alive
            for name in (*made, last):
                free(client, name)
        bystander.leaves()
        core.stop()
    must_have_all(disk.directory, [*made, last])
