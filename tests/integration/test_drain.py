"""`vmcore drain` and the signals, against a real core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from vmsession.v1 import core_pb2, dataspace_pb2, vm_session_pb2

from tests.integration.refusals import error_info, reason_of
from tests.integration.running_core import OTHER_USER, ROOT, VMCORE, RunningCore, Stubs, cancel
from vmm_client.connection import connect
from vmm_client.errors import Refused

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def draining(core: RunningCore, *options: str) -> subprocess.Popen[str]:
    """`vmcore drain`, which has begun when this returns."""
    command = subprocess.Popen(
        [VMCORE, "drain", "--directory", core.directory, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout
    line = command.stdout.readline()
    assert line.startswith("vmcore: "), command.communicate()
    return command


def must_be_gone(core: RunningCore) -> None:
    """Core ended in order, and left nothing."""
    assert core.process.wait(20) == 0, core.log()
    assert sorted(path.name for path in core.directory.iterdir()) == ["audit", "core.lock", "log"]


@pytest.fixture
def client(core: RunningCore) -> Iterator[Stubs]:
    """Stubs with a lease, which core may end before the test does."""
    stubs = Stubs(core.socket)
    beats = stubs.core.KeepAlive(core_pb2.KeepAliveRequest())
    next(iter(beats))
    yield stubs
    cancel(beats)
    stubs.close()


def open_session(stubs: Stubs) -> str:
    request = vm_session_pb2.CreateSessionRequest(engine="soft")
    return str(stubs.vm.CreateSession(request).session.name)


def delete(stubs: Stubs, session: str) -> None:
    stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=session))


def test_a_core_without_sessions_ends_at_once(core: RunningCore, client: Stubs) -> None:
    client.dataspaces.CreateDataspace(dataspace_pb2.CreateDataspaceRequest(size=1 << 20))
    done = subprocess.run(
        [VMCORE, "drain", "--directory", core.directory],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "vmcore: core ended; no session was left\n"
    must_be_gone(core)


def test_core_ends_with_the_last_session_and_tells_until_then(
    core: RunningCore, client: Stubs
) -> None:
    first, second = open_session(client), open_session(client)
    beats = iter(client.core.KeepAlive(core_pb2.KeepAliveRequest()))
    assert not next(beats).draining
    health = health_pb2_grpc.HealthStub(client.channel)
    watch = iter(health.Watch(health_pb2.HealthCheckRequest(), timeout=30))  # type: ignore[attr-defined]
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    assert not client.core.GetInfo(core_pb2.GetInfoRequest()).draining

    command = draining(core)
    assert next(beats).draining
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert client.core.GetInfo(core_pb2.GetInfoRequest()).draining
    with pytest.raises(grpc.RpcError) as refused:
        open_session(client)
    assert reason_of(refused.value) == "SHUTTING_DOWN"
    stream = vm_session_pb2.TRANSPORT_STREAM
    vcpu = vm_session_pb2.CreateVcpuRequest(session=first, index=0, transport=stream)
    client.vm.CreateVcpu(vcpu)  # a session goes on as before

    delete(client, first)
    assert command.stdout
    assert command.stdout.readline() == "vmcore: draining, sessions left: 1\n"
    assert core.process.poll() is None
    delete(client, second)
    out, error = command.communicate(timeout=20)
    assert (command.returncode, out, error) == (0, "vmcore: core ended; no session was left\n", "")
    must_be_gone(core)


def test_who_comes_late_may_look_and_not_make(core: RunningCore, client: Stubs) -> None:
    session = open_session(client)
    drain = draining(core)
    script = (
        "import sys; from vmm_client.connection import connect\n"
        "core = connect(sys.argv[1])\n"
        "print(core.draining, len(list(core.sessions())))\n"
        "for make in (core.create_session, lambda: core.create_ram(1)):\n"
        "    try: make()\n"
        "    except Exception as error: print(error.reason, error.code)\n"
        "core.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, core.socket],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "True 1\n" + "SHUTTING_DOWN UNAVAILABLE\n" * 2, done.stderr
    delete(client, session)
    assert drain.wait(20) == 0
    drain.communicate()
    must_be_gone(core)


def test_a_client_that_ignores_it_is_ended(core: RunningCore, client: Stubs) -> None:
    open_session(client)
    done = subprocess.run(
        [VMCORE, "drain", "--directory", core.directory, "--within", "0.3"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3, done
    first, last = done.stdout.splitlines()
    assert first == "vmcore: draining, sessions left: 1; core ends them in 0 s"
    assert last == "vmcore: core ended, and with it sessions: 1"
    must_be_gone(core)


def test_the_second_drain_may_state_an_earlier_end(core: RunningCore, client: Stubs) -> None:
    open_session(client)
    first = draining(core)
    second = draining(core, "--within", "0")
    assert second.wait(20) == 3
    assert first.wait(20) == 3
    second.communicate()
    first.communicate()
    must_be_gone(core)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_drains(core: RunningCore, client: Stubs, number: int) -> None:
    open_session(client)
    command = draining(core)
    core.process.send_signal(number)
    out, _ = command.communicate(timeout=20)
    assert command.returncode == 3
    assert out == "vmcore: core ended, and with it sessions: 1\n"
    must_be_gone(core)


def test_core_goes_on_draining_without_the_command(core: RunningCore, client: Stubs) -> None:
    session = open_session(client)
    command = draining(core)
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=20)
    assert command.returncode == 130
    assert error == "vmcore: core goes on draining\n"
    assert core.process.poll() is None
    delete(client, session)
    must_be_gone(core)


def drained_by_another(core: RunningCore) -> subprocess.CompletedProcess[str]:
    """`vmcore drain` of user 64001."""
    script = (
        "import sys, os\n"
        "from tests.integration.running_core import become_other_user\n"
        "from core_service.main import main\n"
        "become_other_user()\n"
        "sys.argv = ['vmcore', 'drain', '--directory', sys.argv[1]]\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, core.directory],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@only_root
def test_operators_are_who_the_policy_says(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f"operators = [{OTHER_USER}]\n[[allow]]\n")
    core = RunningCore("--policy", str(policy))
    try:
        done = drained_by_another(core)
        assert (done.returncode, done.stderr) == (0, "")
        must_be_gone(core)
    finally:
        core.close()


@only_root
def test_who_is_no_operator_may_not(core: RunningCore) -> None:
    done = drained_by_another(core)
    assert done.returncode == 1
    assert done.stderr == f"vmcore: {core.socket}: only operators may drain core\n"
    assert core.process.poll() is None


def test_a_core_that_is_stuck_is_told(core: RunningCore, client: Stubs) -> None:
    open_session(client)
    script = (
        "import sys; from core_service import drain_command; from core_service.main import main\n"
        "drain_command.SILENCE = 1\n"
        "sys.argv = ['vmcore', 'drain', '--directory', sys.argv[1]]\n"
        "main()\n"
    )
    core.process.send_signal(signal.SIGSTOP)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, core.directory],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        core.process.send_signal(signal.SIGCONT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vmcore: {core.socket}: core said nothing for 1 s\n"
    core.stop()  # which may drain by now


@pytest.mark.parametrize("within", [-1, 1e300, float("nan"), float("inf")])
def test_times_that_cannot_be(core: RunningCore, client: Stubs, within: float) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        next(iter(client.core.Drain(core_pb2.DrainRequest(within_seconds=within))))
    info = error_info(refused.value)
    assert info.reason == "INVALID_ARGUMENT"
    assert info.metadata["field"] == "within_seconds"
    assert not client.core.GetInfo(core_pb2.GetInfoRequest()).draining


def test_the_library_tells(core: RunningCore) -> None:
    with connect(str(core.socket)) as connection:
        assert not connection.draining
        with connection.create_session("soft"):
            drain = draining(core)
            assert connection.draining
            with pytest.raises(Refused, match="no new sessions"):
                connection.create_session("soft")
        assert drain.wait(20) == 0
        drain.communicate()


def test_nobody_to_ask(core: RunningCore) -> None:
    core.stop()
    done = subprocess.run(
        [VMCORE, "drain", "--directory", core.directory],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"vmcore: {core.socket}: ")
    assert done.stderr.count("\n") == 1
