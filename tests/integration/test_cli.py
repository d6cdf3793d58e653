"""`vmm` against a real core: guests to their end, lists, and the doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.guests.assemble import assemble
from tests.integration.engines import HAVE_KVM, on_every_engine
from tests.integration.running_core import RunningCore, Stubs
from vmm_client import Connection, Session, connect
from vmm_client.boards.pc import FIXED_HARDWARE
from vmm_client.cli.events import COLUMNS
from vmm_client.cli.main import status_of
from vmm_client.doctor.probes import ALL, LONG_MODE, REAL_MODE, Probe, examine
from vmm_client.doctor.select import Need, NoEngine, select_engine, unfit
from vmm_client.doctor.tables import enter_real_mode
from vmm_client.errors import Unsupported

Capture = pytest.CaptureFixture[str]

POWER_OFF = 0x2000 | 5 << 10  # SLP_EN, and SLP_TYP of S5
LOAD_ADDRESS = {16: 0x7C00, 32: 0x100000, 64: 0x100000}
MODES = {16: "real", 32: "protected", 64: "long"}

HELLO = "mov al, 'H'; out 0xe9, al; mov dx, 0x3f8; mov al, 'i'; out dx, al; "

# The PIT raises IRQ 0 at 1 kHz; three ticks wake the guest from HLT, each prints a dot.
TICK = """
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7000
    mov word ptr [0x20], offset tick
    mov word ptr [0x22], 0
    mov al, 0x11
    out 0x20, al
    mov al, 0x08
    out 0x21, al
    mov al, 0x04
    out 0x21, al
    mov al, 0x01
    out 0x21, al
    mov al, 0xfe
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 0x04
    out 0x40, al
    mov cx, 3
    sti
next:
    hlt
    jmp next
tick:
    mov al, '.'
    out 0xe9, al
    mov al, 0x20
    out 0x20, al
    loop again
    mov dx, {port}
    mov ax, {value}
    out dx, ax
    hlt
again:
    iret
"""


@pytest.fixture
def connection(core: RunningCore, stubs: Stubs) -> Iterator[Connection]:
    """A connection; `stubs` proves afterwards that nothing is left."""
    with connect(str(core.socket)) as opened:
        yield opened


class Vmm:
    """`vmm` on a core, in this process."""

    def __init__(self, core: RunningCore, capfd: pytest.CaptureFixture[str], directory: Path):
        self._core = core
        self._capfd = capfd
        self._directory = directory

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        status = status_of([*arguments, "--socket", str(self._core.socket)])
        printed = self._capfd.readouterr()
        return status, printed.out, printed.err

    def run(self, source: str, bits: int, *arguments: str) -> tuple[int, str, str]:
        flat = self._directory / "guest.bin"
        flat.write_bytes(assemble(source.replace("; ", "\n"), bits, LOAD_ADDRESS[bits]))
        return self("run", str(flat), "--mode", MODES[bits], *arguments)


@pytest.fixture
def vmm(core: RunningCore, stubs: Stubs, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Vmm:
    return Vmm(core, capfd, tmp_path)


@on_every_engine
@pytest.mark.parametrize("bits", MODES)
def test_a_guest_speaks_and_halts(vmm: Vmm, engine: str, bits: int) -> None:
    assert vmm.run(HELLO + "hlt", bits, "--engine", engine) == (0, "Hi", "")


@on_every_engine
def test_timer_interrupts_wake_the_guest_until_it_powers_off(vmm: Vmm, engine: str) -> None:
    source = TICK.format(port=FIXED_HARDWARE.power_control, value=POWER_OFF)
    assert vmm.run(source, 16, "--engine", engine, "--memory", "64K") == (0, "...", "")


@on_every_engine
def test_a_reset_is_told_by_the_status(vmm: Vmm, engine: str) -> None:
    assert vmm.run("mov al, 0xfe; out 0x64, al; hlt", 32, "--engine", engine) == (3, "", "")


@on_every_engine
def test_a_triple_fault_is_told_by_the_status(vmm: Vmm, engine: str) -> None:
    source = "push 0; push 0; lidt [rsp]; ud2"
    status, out, err = vmm.run(source, 64, "--engine", engine)
    assert (status, out) == (4, "")
    assert err == "vmm: the guest shut down by a triple fault: SHUTDOWN\n"


@on_every_engine
def test_a_guest_that_leaves_its_memory_is_stuck(vmm: Vmm, engine: str) -> None:
    status, _, err = vmm.run("mov eax, 0x40000000; jmp eax", 32, "--engine", engine)
    assert status == 5
    assert "the guest left its memory: MEMORY_FAULT fetch 0x40000000" in err


def test_the_trace_tells_every_exit_but_those_of_the_console(vmm: Vmm) -> None:
    status, out, err = vmm.run(HELLO + "out 0x42, al; hlt", 16, "--trace")
    assert (status, out) == (0, "Hi")
    lines = err.splitlines()
    assert (lines[0], lines[1]) == ("STARTUP", "PORT out 0x42 size 1 value 0x69")
    assert lines[2].startswith("HLT at ")


def test_a_file_may_have_any_name(vmm: Vmm, tmp_path: Path) -> None:
    flat = tmp_path / b"a\tb\xff.bin".decode(errors="surrogateescape")
    flat.write_bytes(assemble("cli\nhlt", 16))
    assert vmm("run", str(flat)) == (0, "", "")


def test_an_engine_that_is_not_there_is_refused(vmm: Vmm) -> None:
    status, _, err = vmm.run("hlt", 16, "--engine", "perpetuum")
    assert status == 1
    assert err.startswith("vmm: ENGINE_UNAVAILABLE")
    assert "vmm doctor" in err


def test_a_killed_reader_leaves_no_session(stubs: Stubs, core: RunningCore, tmp_path: Path) -> None:
    flat = tmp_path / "endless.bin"
    flat.write_bytes(assemble("again: mov al, 'x'\nout 0xe9, al\njmp again", 16))
    vmm = Path(sys.executable).parent / "vmm"
    command: list[str | Path] = [vmm, "run", flat, "--socket", core.socket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(100) == b"x" * 100
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr.read() == b""


def test_boot_without_images_says_how_to_name_them(
    vmm: Vmm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")  # no apt
    status, out, err = vmm("boot")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == (
        "vmm: apt-get is not installed: this needs Debian's package tools, or give a kernel and an "
        "initrd of your own: vmm boot KERNEL --initrd INITRD"
    )


def test_lists_show_what_is_there_and_what_was(vmm: Vmm, connection: Connection) -> None:
    with connection.create_session(label="mine") as session:
        with connection.create_ram(0x10000) as ram:
            session.attach(ram, gpa=0x100000)
            (row,) = json.loads(vmm("sessions", "--json")[1])
            assert row["session"] == session.name
            assert (row["label"], row["engine"], row["attached_bytes"]) == (
                "mine",
                session.engine,
                0x10000,
            )
            (alive,) = json.loads(vmm("dataspaces", "--json")[1])
            assert (alive["dataspace"], alive["state"], alive["bytes"]) == (
                ram.name,
                "alive",
                0x10000,
            )
            assert len(alive["mapped"]) == 1
        assert json.loads(vmm("dataspaces", "--json")[1]) == []
        (freed,) = json.loads(vmm("dataspaces", "--all", "--json")[1])
        assert (freed["state"], freed["mappings"]) == ("freed", 1)
        assert freed["cause"]
    assert vmm("sessions")[1].splitlines()[1:] == []


def test_lists_read_every_page(vmm: Vmm, connection: Connection) -> None:
    for _ in range(1100):
        connection.create_ram(4096).close()
    assert len(json.loads(vmm("dataspaces", "--all", "--json")[1])) == 1100


def test_the_log_begins_with_what_retention_left(tmp_path: Path, capfd: Capture) -> None:
    options = ("--audit-file-events", "5", "--audit-keep-files", "2")
    with closing(RunningCore(*options)) as core:
        vmm = Vmm(core, capfd, tmp_path)
        with connect(str(core.socket)) as connection, connection.create_ram(4096) as kept:
            for _ in range(10):
                connection.create_ram(4096).close()
            status, out, err = vmm("audit", "history", kept.name)
        assert (status, out) == (0, "\t".join(COLUMNS) + "\n")
        assert err == f"vmm: the beginning of {kept.name} was removed by retention\n"
        revisions = [event["revision"] for event in json.loads(vmm("audit", "log", "--json")[1])]
        assert revisions == [*range(revisions[0], revisions[0] + len(revisions))]
        assert revisions[0] > 10
        status, out, err = vmm("audit", "log", "--after", "1")
        assert (status, out) == (1, "\t".join(COLUMNS) + "\n")
        assert err.startswith("vmm: COMPACTED: event 2 was removed by retention; the oldest is ")
        core.stop()


def test_a_watch_tells_what_was_and_goes_on(core: RunningCore, connection: Connection) -> None:
    with connection.create_ram(0x10000) as ram:
        created = connection.history(ram.name).events[0].revision
    vmm = Path(sys.executable).parent / "vmm"
    options = ["--json", "--count", "4", "--after", str(created - 1), "--socket", str(core.socket)]
    command = [str(vmm), "audit", "watch", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        events = [json.loads(process.stdout.readline()) for _ in range(3)]
        connection.create_ram(0x20000).close()
        events += map(json.loads, process.stdout)
        assert process.wait(20) == 0
    assert [event["event"] for event in events] == ["created", "freed", "opened", "created"]
    assert [event["detail"].get("size") for event in events] == [0x10000, None, None, 0x20000]
    assert events[2]["pid"] == process.pid


def test_totals_of_parts_add_up(vmm: Vmm, connection: Connection) -> None:
    with connection.create_ram(0x10000), connection.create_ram(0x20000):
        whole = json.loads(vmm("audit", "totals", "--json")[1])
        for grouping in ("client", "uid", "kind"):
            parts = json.loads(vmm("audit", "totals", "--by", grouping, "--json")[1])
            assert sum(part["live_bytes"] for part in parts) == whole["live_bytes"] == 0x30000
            assert sum(part["proportional_bytes"] for part in parts) == 0x30000
    (kind,) = json.loads(vmm("audit", "totals", "--by", "kind", "--json")[1])
    assert (kind["kind"], kind["live_bytes"], kind["peak_bytes"]) == ("ram", 0, 0x30000)
    whole = json.loads(vmm("audit", "totals", "--json")[1])
    assert (whole["ram_used"], whole["ram_peak"]) == (0, 0x30000)
    assert whole["ram_limit"] > whole["ram_peak"]


def test_memory_that_is_shared_counts_once(vmm: Vmm, connection: Connection) -> None:
    with connection.create_ram(0x10000) as ram:
        share = ram.share(os.getuid(), offset=0x8000)
        with connection.accept(share) as part:
            rows = json.loads(vmm("dataspaces", "--json")[1])
            assert {row["dataspace"]: (row["bytes"], row["proportional"]) for row in rows} == {
                ram.name: (0x10000, 0xC000),
                part.name: (0x8000, 0x4000),
            }
            assert {(row["uid"], row["gid"]) for row in rows} == {(os.getuid(), os.getgid())}
            (mine,) = json.loads(vmm("audit", "totals", "--by", "uid", "--json")[1])
            assert (mine["live_bytes"], mine["proportional_bytes"]) == (0x18000, 0x10000)
            assert mine["ram_used"] == 0x18000


def test_the_doctor_examines_every_engine(vmm: Vmm) -> None:
    status, out, err = vmm("doctor", "--json")
    told = json.loads(out)
    engines = {engine["name"]: engine for engine in told["engines"]}
    assert (status, err, told["core"]) == (0, "", {"problem": ""})
    assert engines["soft"]["runs_stock_kernels"]
    assert set(engines["soft"]["speeds"]) == {
        "real mode",
        "protected mode",
        "long mode, ring 0",
        "long mode, ring 3",
    }
    assert [f["probe"] for f in engines["soft"]["findings"]] == [probe.name for probe in ALL]
    assert {"debug", "paging"} <= set(engines["soft"]["abilities"]["features"])
    assert "NMI_WINDOW" in engines["soft"]["abilities"]["exits"]
    assert {"rax", "cs"} <= set(engines["soft"]["abilities"]["registers"])
    assert told["verdict"][-1].startswith("`--engine auto` boots stock kernels on ")
    if told["host"]["module"] == "kvm_pvm" and HAVE_KVM:
        assert not engines["kvm"]["runs_stock_kernels"]
        assert "kvm emulates ring 0 here (kvm_pvm)" in told["verdict"][0]


def test_the_doctor_tells_what_an_engine_lacks(vmm: Vmm) -> None:
    rows = [line.split("\t") for line in vmm("doctor")[1].splitlines() if line.startswith("soft\t")]
    about = {what: (works, detail) for _, what, works, detail in rows}
    assert "debug" in about["features"][1]
    works, detail = about["all features"]
    assert works == "no"
    assert "parallel" in detail.removeprefix("without ").split(", ")


def test_a_probe_that_needs_what_the_engine_lacks_says_so(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm_client.session.Session.require", lacks_efer)
    real, long = examine(connection, "soft", [REAL_MODE, LONG_MODE])
    assert real.passed
    assert long.why == "engine soft has no efer"


def lacks_efer(_: Session, *names: str) -> None:
    if "efer" in names:
        raise Unsupported("soft", "efer")


def test_the_software_cpu_passes_every_probe(connection: Connection) -> None:
    findings = list(examine(connection, "soft", ALL))
    assert [(finding.probe, finding.why) for finding in findings if not finding.passed] == []


@pytest.mark.parametrize("need", Need)
def test_auto_takes_the_first_engine_that_can(connection: Connection, need: Need) -> None:
    able = [
        engine.name
        for engine in connection.engines()
        if engine.available and not unfit(connection, engine.name, need)
    ]
    assert select_engine(connection, need) == able[0]


def test_where_no_engine_can_each_says_why(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = Probe("the impossible", enter_real_mode, b"\xf4")
    monkeypatch.setattr("vmm_client.doctor.select.PROBES", {Need.REAL_MODE: (hopeless,)})
    with pytest.raises(NoEngine, match="no engine here can run 16-bit code") as caught:
        select_engine(connection, Need.REAL_MODE)
    assert caught.value.why["soft"] == "the impossible: wrong result"


def test_a_probe_that_hangs_ends_in_time(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm_client.doctor.probes.TIME_LIMIT_SECONDS", 0.05)
    endless = Probe("patience", enter_real_mode, b"\xeb\xfe")
    (finding,) = examine(connection, "soft", [endless])
    assert (finding.passed, finding.why) == (False, "it comes to no end")
