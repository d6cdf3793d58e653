"""Policy of a real core: whom it lets in, what it gives them, and how it changes under them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vmsession.v1.core_pb2 import GetInfoRequest
from vmsession.v1.vm_session_pb2 import UpgradeQuotaRequest

from tests.integration.running_core import OTHER_USER, ROOT, VMCORE, RunningCore, Stubs
from tests.integration.test_sight import look
from tests.integration.victim import Victim
from tests.integration.waiting import eventually
from vmm_client import connect
from vmm_client.errors import Refused

MIB = 1 << 20
MINE = os.geteuid()
as_two_users = pytest.mark.skipif(MINE != 0, reason="only root can be two users")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the policy is."""
    return tmp_path / "policy.toml"


@pytest.fixture
def governed(file: Path) -> Iterator[Callable[[str], RunningCore]]:
    """A core with a policy; it must stop in order."""
    started: list[RunningCore] = []

    def start(policy: str) -> RunningCore:
        file.write_text(policy)
        started.append(RunningCore("--policy", str(file)))
        return started[-1]

    yield start
    for core in started:
        try:
            core.stop()
        finally:
            core.close()


def reason_of(call: Callable[[], object]) -> tuple[str, str, str]:
    with pytest.raises(Refused) as caught:
        call()
    numbers = caught.value.metadata
    return caught.value.reason, numbers.get("used", ""), numbers.get("limit", "")


def test_limits_of_clients_sessions_and_vcpus(governed: Callable[[str], RunningCore]) -> None:
    core = governed(
        """
        [[allow]]
        label = "small-"
        sessions = 1
        vcpus = 1
        engines = ["soft"]

        [[allow]]
        sessions = 2
        client_ram = "2 MiB"
        client_capabilities = 20
        """
    )
    with connect(str(core.socket)) as client:
        assert (client.info.ram.limit, client.info.capabilities.limit) == (2 * MIB, 20)
        assert reason_of(lambda: client.create_ram(3 * MIB)) == ("OUT_OF_RAM", "0", str(2 * MIB))
        with client.create_session(label="small-1") as small:
            assert small.engine == "soft"
            small.create_vcpu()
            assert reason_of(lambda: small.create_vcpu(1)) == ("OUT_OF_CAPS", "1", "1")
            again = reason_of(lambda: client.create_session(label="small-2"))
            assert again == ("OUT_OF_CAPS", "1", "1")
            other = reason_of(lambda: client.create_session("kvm", label="small-"))
            assert other == ("DENIED", "", "")
            with client.create_session("soft", label="big"):
                third = reason_of(lambda: client.create_session("soft"))
                assert third == ("OUT_OF_CAPS", "2", "2")
            request = UpgradeQuotaRequest(session=small.name, ram=4 * MIB)
            upgrade = reason_of(lambda: client.rpc.call(client.vm_sessions.UpgradeQuota, request))
            assert upgrade[0] == "OUT_OF_RAM"


def test_sessions_of_core_as_a_whole(governed: Callable[[str], RunningCore]) -> None:
    core = governed("[limits]\nsessions = 1\n[[allow]]\n")
    with connect(str(core.socket)) as client:
        with client.create_session("soft"):
            assert reason_of(lambda: client.create_session("soft")) == ("OUT_OF_CAPS", "", "")
        client.create_session("soft").close()


@as_two_users
def test_whom_policy_does_not_know_is_not_let_in(governed: Callable[[str], RunningCore]) -> None:
    core = governed("[[allow]]\nusers = [0]\n")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        look(core, OTHER_USER)
    assert "CoreUnavailable" in caught.value.stderr
    assert f"policy lets no such client in' uid={OTHER_USER}" in core.log().replace('"', "'")


def test_an_operator_without_a_rule_only_looks(governed: Callable[[str], RunningCore]) -> None:
    core = governed(f"[[allow]]\nusers = [{OTHER_USER}]\n")
    with connect(str(core.socket)) as client:
        assert list(client.sessions()) == []
        assert client.totals().sessions == 0
        assert reason_of(lambda: client.create_ram(4096))[0] == "OUT_OF_RAM"
        assert reason_of(lambda: client.create_session("soft"))[0] == "DENIED"


@as_two_users
def test_who_may_see_whom(governed: Callable[[str], RunningCore], file: Path) -> None:
    stranger, operator = OTHER_USER + 1, OTHER_USER + 2
    core = governed(
        f"""
        operators = [{operator}]
        [[allow]]
        users = [{stranger}]
        audit = [{OTHER_USER}]
        [[allow]]
        """
    )
    with Victim(core, "soft") as victim:
        for uid in (stranger, operator):
            seen = look(core, uid)
            assert seen["sessions"] == [victim.session]
            assert seen["records"] == [victim.dataspace]
        assert look(core, stranger)["core"] == [0, 0]
        assert look(core, operator)["core"] != [0, 0]
        assert look(core, OTHER_USER + 3)["sessions"] == []
        file.write_text("[[allow]]\n")
        core.process.send_signal(signal.SIGHUP)
        eventually(lambda: "policy changed" in core.log())
        assert look(core, stranger)["sessions"] == []


def test_a_policy_is_read_again_and_takes_nothing_away(
    governed: Callable[[str], RunningCore], file: Path
) -> None:
    core = governed("[[allow]]\nclient_ram = '4 MiB'\n")
    with connect(str(core.socket)) as client, client.create_ram(3 * MIB):
        file.write_text("[[allow]]\nclient_ram = '1 MiB'\n")
        core.process.send_signal(signal.SIGHUP)
        eventually(lambda: client.rpc.call(client._core.GetInfo, GetInfoRequest()).ram.limit == MIB)
        refused = reason_of(lambda: client.create_ram(4096))
        assert refused == ("OUT_OF_RAM", str(3 * MIB), str(MIB))
        file.write_text("[[allow]]\nclient_ram = 'much'\n")
        core.process.send_signal(signal.SIGHUP)
        eventually(lambda: "policy stays as it was" in core.log())
        assert f"{file}:2: allow[0].client_ram: 'much' is no size" in core.log()
        assert client.rpc.call(client._core.GetInfo, GetInfoRequest()).ram.limit == MIB
        events = [event for event in client.events() if event.kind == "policy"]
        assert [json.loads(event.detail)["file"] for event in events] == [str(file)]


def test_core_does_not_start_with_a_bad_policy(file: Path, tmp_path: Path) -> None:
    file.write_text("[[allow]]\nsession = 1\n")
    command = [VMCORE, "serve", "--directory", str(tmp_path), "--policy", str(file)]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert tried.returncode == 1
    assert f"{file}:2: allow[0].session: there is no such key" in tried.stderr
    assert not (tmp_path / "core.sock").exists()


def test_check_config_tells_what_a_policy_says(file: Path) -> None:
    file.write_text("[[allow]]\nusers = [7]\nengines = ['soft']\nram = '2 GiB'\n")
    command = [VMCORE, "check-config", str(file)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert "rule 1     users 7\n" in shown
    assert "  ram                  2 GiB\n" in shown
    told = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=20, check=True
    )
    (rule,) = json.loads(told.stdout)["allow"]
    assert (rule["for"], rule["engines"], rule["ram"]) == (
        {"uids": [7], "gids": []},
        ["soft"],
        2 << 30,
    )
    file.write_text("[[allow]\n")
    bad = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert f"{file}:1: " in bad.stderr


LEASEHOLDER = """
import json, os, socket, sys
from pathlib import Path
import grpc
from vmsession.v1 import core_pb2
from tests.integration.running_core import Stubs, become_other_user
become_other_user()
stubs, channels, said = Stubs(Path(sys.argv[1])), [], []
for _ in range(int(sys.argv[2])):
    try:
        ticket = stubs.core.OpenFdChannel(core_pb2.OpenFdChannelRequest(), timeout=10).ticket
    except grpc.RpcError as error:
        said.append(error.code().name)
        break
    channels.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    channels[-1].connect(os.path.join(os.path.dirname(sys.argv[1]), "fds.sock"))
    channels[-1].send(ticket.encode())
    said.append(channels[-1].recv(300).decode())
stubs.close()
print(json.dumps(said), flush=True)
sys.stdin.read()
"""


class Leaseholder:
    """A client with fd channels and no connection; `said` is what core answered to each."""

    def __init__(self, core: RunningCore, channels: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LEASEHOLDER, core.socket, str(channels)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.said: list[str] = json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """It ends."""
        self.process.communicate("")


FOUR_CONNECTIONS = """
[[allow]]
connections = 4
"""


@as_two_users
def test_fd_channels_of_a_user_are_bounded(governed: Callable[[str], RunningCore]) -> None:
    core = governed(FOUR_CONNECTIONS)
    holders = [Leaseholder(core, 3), Leaseholder(core, 3)]
    answers = [*holders[0].said, *holders[1].said]
    assert answers[:4] == ["ok"] * 4
    assert answers[4:] == ["error OUT_OF_CAPS your user has 4 channels, of 4 at most"] * 2
    for holder in holders:
        holder.close()


@as_two_users
def test_clients_of_a_user_are_bounded(governed: Callable[[str], RunningCore]) -> None:
    """Also those that are not connected any more: each is an account and a watched process."""
    core = governed(FOUR_CONNECTIONS)
    holders = [Leaseholder(core, 1) for _ in range(5)]
    assert [holder.said for holder in holders] == [["ok"]] * 4 + [["UNAVAILABLE"]]
    holders[0].close()
    operator = Stubs(core.socket)
    eventually(lambda: operator.totals().clients == 4)
    operator.close()
    holders[0] = Leaseholder(core, 1)
    assert holders[0].said == ["ok"]
    for holder in holders:
        holder.close()
