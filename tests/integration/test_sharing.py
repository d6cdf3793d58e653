"""Shared, sealed and read-only memory through a real core, real engines and two processes."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import pytest
from vmsession.v1 import vm_session_pb2

from tests.integration.engines import on_every_engine
from tests.integration.refusals import reason_of
from tests.integration.running_core import OTHER_USER, RunningCore, Stubs
from tests.integration.waiting import eventually
from vmm_client import Connection, Ram, Reason, Segment, Session, Vcpu, connect
from vmm_client.errors import ReadOnly, Refused

ROOT = Path(__file__).parents[2]
PAGE = 4096
AT = 0x8000
MIB = 1 << 20
CODE = Segment(0, 0x9B, 0xFFFF, 0)
READER = bytes.fromhex("a0 0080 e6e9 ebf9")  # again: mov al, [0x8000]; out 0xe9, al; jmp again
CALLER = bytes.fromhex("e8 fd7f e6e9 ebf9")  # again: call 0x8000; out 0xe9, al; jmp again
OTHER_UID = OTHER_USER if os.geteuid() == 0 else os.geteuid()


@pytest.fixture
def connection(core: RunningCore, stubs: Stubs) -> Iterator[Connection]:
    """A connection; `stubs` proves afterwards that nothing is left."""
    with connect(str(core.socket)) as opened:
        yield opened


class Receiver:
    """Another process, of another user if we are root, that does as it is told: see sharing_receiver."""

    def __init__(self, core: RunningCore) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.sharing_receiver", core.socket],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: str, *arguments: Any) -> Any:
        """The answer to one command."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the receiver ended"
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def receiver(core: RunningCore) -> Iterator[Receiver]:
    """The other process."""
    with Receiver(core) as started:
        yield started


def started(session: Session) -> Vcpu:
    """A vCPU that stands at the first exit of real-mode code at 0:0."""
    vcpu = session.create_vcpu()
    vcpu.run()
    startup = vcpu.wait()
    assert startup
    assert startup.reason == Reason.STARTUP
    vcpu.registers.update({"cs": CODE, "rip": 0})
    return vcpu


def next_exit(vcpu: Vcpu) -> tuple[Reason, int]:
    """Run to the next exit; its reason, and its value or address."""
    vcpu.run()
    exit_ = vcpu.wait()
    assert exit_
    return exit_.reason, exit_.value if exit_.reason == Reason.PORT else exit_.address


@on_every_engine
def test_the_example_of_two_vms(core: RunningCore, stubs: Stubs, engine: str) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "examples.two_vms", engine],
        cwd=ROOT,
        env=os.environ | {"VMSESSION_SOCKET": str(core.socket)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (completed.stderr, completed.stdout) == ("", "Hello from another VM\n")


@on_every_engine
def test_guests_see_what_the_other_holder_writes(
    connection: Connection, receiver: Receiver, engine: str
) -> None:
    """Data is coherent without a word; code is, once it was stored through core."""
    with (
        connection.create_ram(PAGE) as low,
        connection.create_ram(PAGE) as shared,
        connection.create_session(engine) as session,
    ):
        receiver("accept", shared.share(OTHER_UID).name)
        session.attach(low, gpa=0)
        session.attach(shared, gpa=AT)
        low.write(0, READER)
        vcpu = started(session)
        for value in 1, 2:
            receiver("poke", 0, value)
            assert next_exit(vcpu) == (Reason.PORT, value)
    with (
        connection.create_ram(MIB) as low,
        connection.create_ram(PAGE) as shared,
        connection.create_session(engine) as session,
    ):
        receiver("accept", shared.share(OTHER_UID).name)
        session.attach(low, gpa=0, size=AT)
        session.attach(shared, gpa=AT)
        session.attach(low, gpa=AT + PAGE, size=PAGE)
        low.write(0, CALLER)
        vcpu = started(session)
        vcpu.registers.rsp = AT - 16
        for value in 1, 2, 3:
            receiver("store", 0, bytes([0xB0, value, 0xC3]).hex())  # mov al, value; ret
            assert next_exit(vcpu) == (Reason.PORT, value)


@on_every_engine
def test_revoking_takes_it_from_the_receivers_guest(
    connection: Connection, receiver: Receiver, engine: str
) -> None:
    with connection.create_ram(PAGE) as shared:
        share = shared.share(OTHER_UID)
        assert receiver("accept", share.name) == [PAGE, True, shared.name]
        shared.write(0, b"\x07")
        assert receiver("run", engine, READER.hex()) == ["PORT", 7]
        share.revoke()
        assert not share.held
        assert receiver("go on") == ["MMIO", AT]
        assert receiver("attach other", 0x2A) == ["PORT", 0x2A]
        share.revoke()
        assert [each.name for each in connection.shares()] == []
    assert receiver("close") is False


def test_what_the_receiver_maps_stays_charged_to_its_user(
    connection: Connection, stubs: Stubs, receiver: Receiver
) -> None:
    with connection.create_ram(PAGE) as shared:
        share = shared.share(OTHER_UID)
        receiver("accept", share.name)
        receiver("map")
        share.revoke()
        assert share.held
        assert stubs.totals().held_bytes == PAGE
        receiver("unmap")
        eventually(lambda: stubs.totals().held_bytes == 0)
        assert not next(iter(connection.shares()), None)


def test_a_killed_receiver_costs_the_owner_nothing(
    connection: Connection, stubs: Stubs, receiver: Receiver
) -> None:
    with connection.create_ram(PAGE) as shared:
        shared.write(0, b"mine")
        receiver("accept", shared.share(OTHER_UID).name)
        receiver("map")
        accepted = next(iter(connection.shares())).accepted_as
        receiver.process.kill()
        eventually(lambda: _state(stubs, connection, accepted) == "CLIENT ENDED")
        assert shared.read(0, 4) == b"mine"


def _state(stubs: Stubs, connection: Connection, name: str) -> str:
    record = next(record for record in connection.records() if record.name == name)
    return "CLIENT ENDED" if record.cause == "client process ended" else "ALIVE"


def test_a_part_is_read_and_written_through_core(
    connection: Connection, receiver: Receiver
) -> None:
    with connection.create_ram(4 * MIB) as shared:
        share = shared.share(OTHER_UID, offset=MIB, size=2 * MIB)
        assert receiver("accept", share.name) == [2 * MIB, True, shared.name]
        content = os.urandom(PAGE)
        shared.write(2 * MIB - 10, content)
        assert receiver("peek", MIB - 10, PAGE) == content.hex()
        receiver("store", MIB - 2, "01020304")
        assert shared.read(2 * MIB - 2, 4) == bytes([1, 2, 3, 4])
        assert receiver("map") == "INVALID_DATASPACE"
        assert receiver("store", 2 * MIB, "00") == "ValueError"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_what_is_shared_read_only_cannot_be_reopened_writable(
    connection: Connection, receiver: Receiver
) -> None:
    with connection.create_ram(PAGE) as shared:
        assert receiver("accept", shared.share(OTHER_UID, read_only=True).name)[1] is False
        assert receiver("poke", 0, 1) == "READ_ONLY"
        assert receiver("store", 0, "01") == "READ_ONLY"
        assert receiver("reopen") == "PermissionError"
        assert receiver("unmap") == "done"
        shared.write(0, b"\x09")
        assert shared.read(0, 1) == b"\x09"


def test_an_offer_is_for_whom_it_names(connection: Connection, receiver: Receiver) -> None:
    with connection.create_ram(PAGE) as shared:
        share = shared.share(OTHER_UID, pid=1)
        assert receiver("accept", share.name) == "NOT_FOUND"
        offered = shared.share(OTHER_UID, pid=receiver.process.pid)
        assert receiver("offers") == [[offered.name, "", os.geteuid(), True]]
        seen = [(each.name, each.dataspace, each.receiver.pid) for each in connection.shares()]
        assert seen == [
            (share.name, shared.name, 1),
            (offered.name, shared.name, receiver.process.pid),
        ]


@on_every_engine
def test_sealed_memory_attaches_read_only(connection: Connection, engine: str) -> None:
    with connection.create_ram(PAGE) as ram, connection.create_session(engine) as session:
        ram.write(0, READER)
        attachment = session.attach(ram, gpa=0)
        with pytest.raises(Refused) as refused:
            ram.seal()
        assert (refused.value.reason, refused.value.metadata["session"]) == (
            "STILL_WRITABLE",
            session.name,
        )
        session.detach(0, attachment.size)
        ram.seal()
        assert not ram.writable
        assert not session.attach(ram, gpa=0).writable
        assert not session.attach(ram, gpa=AT).writable
        assert ram.read(0, len(READER)) == READER
        with pytest.raises(ReadOnly):
            ram.write(0, b"x")
        with pytest.raises(Refused, match="READ_ONLY"):
            ram.store(0, b"x")
        assert next_exit(started(session)) == (Reason.PORT, READER[0])


def test_a_view_that_was_kept_is_in_the_way_of_a_seal(connection: Connection) -> None:
    with connection.create_ram(PAGE) as ram:
        kept = ram.view[:1]
        with pytest.raises(Refused) as refused:
            ram.seal()
        assert refused.value.reason == "STILL_WRITABLE"
        assert "mapping" in refused.value.metadata["why"]
        kept.release()
        ram.seal()


def test_memory_is_read_only_for_good(connection: Connection) -> None:
    with connection.create_ram(PAGE) as ram:
        ram.seal()
        fd = connection.fd_channel.collect(ram.name)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR) if os.geteuid() == 0 else fd
        with pytest.raises(PermissionError):
            mmap.mmap(again, PAGE)
        for each in {fd, again}:
            os.close(each)


@pytest.fixture
def roms(tmp_path: Path) -> Path:
    """A directory that policy names, with a file, beside one with a secret."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"secret")
    directory = tmp_path / "roms"
    (directory / "sub").mkdir(parents=True)
    (directory / "bios").write_bytes(b"\xea" * 5000)
    (directory / "sub" / "link").symlink_to("../bios")
    (directory / "out").symlink_to("../secret/key")
    (directory / "outside").symlink_to(tmp_path / "secret")
    os.mkfifo(directory / "fifo")
    (directory / "empty").touch()
    return directory


@pytest.fixture
def rom_connection(roms: Path) -> Iterator[Connection]:
    """A connection to a core with that policy."""
    policy = roms.parent / "policy.toml"
    policy.write_text(f'[[allow]]\nrom_paths = ["{roms}"]\n')
    core = RunningCore("--policy", str(policy))
    try:
        with connect(str(core.socket)) as opened:
            yield opened
            totals = opened.totals()
            assert (totals.live, totals.extra_fds) == (0, 0)
        core.stop()
    finally:
        core.close()


@on_every_engine
def test_a_rom_is_the_file_and_read_only(
    rom_connection: Connection, roms: Path, engine: str
) -> None:
    with (
        rom_connection.create_rom(roms / "sub" / "link") as rom,
        rom_connection.create_session(engine) as session,
    ):
        assert (rom.size, rom.writable) == (2 * PAGE, False)
        assert rom.read(0, rom.size) == b"\xea" * 5000 + bytes(2 * PAGE - 5000)
        assert not session.attach(rom, gpa=0).writable
        with pytest.raises(ReadOnly):
            session.memory.write(0, b"x")
        with pytest.raises(Refused, match="READ_ONLY"):
            rom.seal()
        with pytest.raises(Refused, match="READ_ONLY"):
            rom.share(OTHER_UID)
        assert rom.share(OTHER_UID, read_only=True).size == rom.size


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("{roms}/out", "DENIED"),
        ("{roms}/outside/key", "DENIED"),
        ("{roms}/../secret/key", "DENIED"),
        ("{roms}/sub/../../secret/key", "DENIED"),
        ("{roms}/../roms/bios", "DENIED"),
        ("/etc/passwd", "DENIED"),
        ("{roms}secret", "DENIED"),
        ("bios", "DENIED"),
        ("", "DENIED"),
        ("{roms}/" + "x/" * 5000, "DENIED"),
        ("{roms}/none", "INVALID_DATASPACE"),
        ("{roms}/" + "x" * 300, "INVALID_DATASPACE"),
        ("{roms}/", "INVALID_DATASPACE"),
        ("{roms}/sub", "INVALID_DATASPACE"),
        ("{roms}/fifo", "INVALID_DATASPACE"),
        ("{roms}/empty", "INVALID_DATASPACE"),
        ("{roms}/\0", "INVALID_DATASPACE"),
    ],
)
def test_no_path_leads_out_of_what_policy_names(
    rom_connection: Connection, roms: Path, path: str, reason: str
) -> None:
    with pytest.raises(Refused) as refused:
        rom_connection.create_rom(path.format(roms=roms))
    assert refused.value.reason == reason
    assert rom_connection.info.client.pid == os.getpid()


def test_without_policy_there_are_no_roms(connection: Connection, roms: Path) -> None:
    with pytest.raises(Refused, match="DENIED"):
        connection.create_rom(roms / "bios")


def test_only_dataspaces_are_attached(connection: Connection, stubs: Stubs) -> None:
    """Genode's managed dataspaces: what is no dataspace of core cannot be mapped by an engine."""
    with connection.create_session("soft") as session, connection.create_ram(PAGE) as ram:
        vcpu = session.create_vcpu()
        for name in vcpu.name, session.name, ram.share(0).name, "", "\0":
            with pytest.raises(grpc.RpcError) as refused:
                stubs.vm.Attach(vm_session_pb2.AttachRequest(session=session.name, dataspace=name))
            assert reason_of(refused.value) == "INVALID_DATASPACE"


def test_there_is_no_pic_on_x86(connection: Connection, stubs: Stubs) -> None:
    with connection.create_session("soft") as session:
        for name, reason in (session.name, "INVALID_DATASPACE"), ("sessions/1", "NOT_FOUND"):
            with pytest.raises(grpc.RpcError) as refused:
                stubs.vm.AttachPic(vm_session_pb2.AttachPicRequest(session=name, gpa=0x8000000))
            assert reason_of(refused.value) == reason


def test_a_share_can_be_taken_by_its_own_process(connection: Connection) -> None:
    with connection.create_ram(PAGE) as ram:
        again: Ram = connection.accept(ram.share(os.geteuid()))
        ram.write(0, b"same")
        assert again.read(0, 4) == b"same"
        assert again.origin == ram.name
