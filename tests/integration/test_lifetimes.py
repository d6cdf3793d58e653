"""Whoever ends, and however: everything of theirs is freed, and nobody else notices."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from vmsession.v1 import audit_pb2, core_pb2, dataspace_pb2, vcpu_pb2, vm_session_pb2

from tests.integration.engines import on_every_engine
from tests.integration.refusals import error_info, reason_of
from tests.integration.running_core import RunningCore, Stubs, cancel
from tests.integration.stream_vmm import StreamVmm
from tests.integration.victim import Victim
from tests.integration.waiting import eventually

TALKER = bytes.fromhex("b041 e642 e443 e644 f4")


def record(stubs: Stubs, name: str) -> audit_pb2.DataspaceRecord:
    """The audit's record of a dataspace."""
    records = stubs.audit.ListRecords(audit_pb2.ListRecordsRequest(page_size=1000)).records
    return next(record for record in records if record.name == name)


@on_every_engine
def test_a_killed_client_is_reclaimed_and_others_go_on(
    core: RunningCore, stubs: Stubs, engine: str
) -> None:
    mine = StreamVmm(stubs, engine, TALKER)
    mine.start()
    wrote = mine.next()
    with Victim(core, engine) as victim:
        assert stubs.totals().sessions == 2
        assert record(stubs, victim.dataspace).state == audit_pb2.DATASPACE_STATE_ALIVE
        victim.process.kill()
        eventually(lambda: stubs.totals().sessions == 1)
        eventually(lambda: record(stubs, victim.dataspace).state == audit_pb2.DATASPACE_STATE_FREED)
        freed = record(stubs, victim.dataspace)
    assert freed.cause == "client process ended"
    assert freed.mappings == 1
    assert freed.holder.pid == victim.process.pid
    assert len(core.engine_pids()) == 1
    mine.reply(vcpu_pb2.Reply(sequence=wrote.sequence))
    assert mine.next().address == 0x43


@on_every_engine
def test_a_killed_engine_costs_its_session_alone(
    core: RunningCore, stubs: Stubs, engine: str
) -> None:
    mine = StreamVmm(stubs, engine, TALKER)
    mine.start()
    wrote = mine.next()
    other = StreamVmm(stubs, engine, bytes.fromhex("ebfe"))
    other.start()
    request = vm_session_pb2.GetSessionRequest(name=other.session)
    os.kill(stubs.vm.GetSession(request).session.engine_pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as died:
        other.next()
    assert reason_of(died.value) == "ENGINE_DIED"
    with pytest.raises(grpc.RpcError) as refused:
        stubs.vm.GetSession(request)
    assert error_info(refused.value).reason == "ENGINE_DIED"
    assert error_info(refused.value).metadata["why"] == "killed by signal 9 (Killed)"
    eventually(lambda: len(core.engine_pids()) == 1)
    # the dataspace is its client's, not the session's
    survivor = dataspace_pb2.GetDataspaceRequest(name=other.dataspace)
    assert stubs.dataspaces.GetDataspace(survivor).dataspace.attachments == 0
    mine.reply(vcpu_pb2.Reply(sequence=wrote.sequence))
    assert mine.next().address == 0x43


@on_every_engine
def test_an_engine_ends_with_core(core: RunningCore, engine: str) -> None:
    with Victim(core, engine):
        (pid,) = core.engine_pids()
        pidfd = os.pidfd_open(pid)
        core.kill()
        ended, _, _ = select.select([pidfd], [], [], 10)
        os.close(pidfd)
        assert ended


def test_two_sessions_of_one_client_are_apart(stubs: Stubs) -> None:
    """Genode's bug 2: closing one session freed the other's vCPUs."""
    first = StreamVmm(stubs, "soft", TALKER)
    second = StreamVmm(stubs, "soft", TALKER)
    first.start()
    second.start()
    first.next()
    wrote = second.next()
    stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=first.session))
    second.reply(vcpu_pb2.Reply(sequence=wrote.sequence))
    assert second.next().address == 0x43


def test_freeing_a_dataspace_unmaps_it_everywhere(stubs: Stubs) -> None:
    vmm = StreamVmm(stubs, "soft", TALKER)
    freed = stubs.dataspaces.FreeDataspace(dataspace_pb2.FreeDataspaceRequest(name=vmm.dataspace))
    assert not freed.held
    session = stubs.vm.GetSession(vm_session_pb2.GetSessionRequest(name=vmm.session)).session
    assert (session.attachments, session.attached_bytes) == (0, 0)
    # the fetch finds nothing there: a fault of the guest, not the end of the engine
    vmm.start()
    fault = vmm.next()
    assert (fault.reason, fault.fetch, fault.address) == (
        vcpu_pb2.EXIT_REASON_MEMORY_FAULT,
        True,
        0x1000,
    )


def test_clients_see_only_their_own(core: RunningCore, stubs: Stubs) -> None:
    mine = StreamVmm(stubs, "soft", TALKER)
    with Victim(core, "soft") as victim:
        for call in (
            lambda: stubs.vm.GetSession(vm_session_pb2.GetSessionRequest(name=victim.session)),
            lambda: stubs.vm.DeleteSession(
                vm_session_pb2.DeleteSessionRequest(name=victim.session)
            ),
            lambda: stubs.vm.Pause(vm_session_pb2.PauseRequest(vcpu=victim.vcpu)),
            lambda: stubs.vm.Attach(
                vm_session_pb2.AttachRequest(
                    session=mine.session, dataspace=victim.dataspace, gpa=0x100000
                )
            ),
            lambda: stubs.dataspaces.ReadDataspace(
                dataspace_pb2.ReadDataspaceRequest(name=victim.dataspace, size=1)
            ),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert reason_of(refused.value) == "NOT_FOUND"


def test_without_a_lease_a_client_lives_for_the_grace_period() -> None:
    core = RunningCore("--grace", "0.5")
    try:
        watcher = Stubs(core.socket)
        with Victim(core, "soft", lease="none") as victim:
            eventually(lambda: record(watcher, victim.dataspace).cause == "lease ended")
            assert victim.process.poll() is None
            eventually(lambda: watcher.totals().sessions == 0)
        watcher.close()
        core.stop()
    finally:
        core.close()


def test_keep_alive_is_a_lease() -> None:
    core = RunningCore("--grace", "0.2")
    try:
        stubs = Stubs(core.socket)
        beats = stubs.core.KeepAlive(core_pb2.KeepAliveRequest())
        assert next(iter(beats)).interval_seconds == 5.0
        created = stubs.dataspaces.CreateDataspace(
            dataspace_pb2.CreateDataspaceRequest(size=4096)
        ).dataspace
        with Victim(core, "soft", lease="none") as victim:  # outlived: its grace is as short
            eventually(lambda: record(stubs, victim.dataspace).cause == "lease ended")
        assert record(stubs, created.name).state == audit_pb2.DATASPACE_STATE_ALIVE
        cancel(beats)
        eventually(lambda: record(stubs, created.name).cause == "lease ended")
        stubs.close()
        core.stop()
    finally:
        core.close()


def test_an_orderly_stop_frees_everything(core: RunningCore) -> None:
    with Victim(core, "soft"):
        (pid,) = core.engine_pids()
        core.stop()
        assert not Path(f"/proc/{pid}").exists()


def test_a_second_core_does_not_take_the_socket(core: RunningCore) -> None:
    second = subprocess.run(
        [
            Path(sys.executable).parent / "vmcore",
            "serve",
            "--directory",
            core.directory,
            "--audit-directory",
            core.audit,
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert "another core serves on" in second.stderr
    assert core.socket.exists()
    stubs = Stubs(core.socket)
    assert stubs.totals().live == 0
    stubs.close()
