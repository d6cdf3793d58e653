"""`vmm run`: a flat binary on a PC board, as test guests and small kernels are made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from dataspace.vcpu_page import Reason
from vmm_client import console
from vmm_client.boards.pc import COM1, PC, ram_pieces
from vmm_client.boot.flat import Mode, load
from vmm_client.cli.ending import status_of
from vmm_client.cli.schedule import Cpus, Priority
from vmm_client.cli.sizes import Size
from vmm_client.connection import connect
from vmm_client.doctor.select import Need, select_engine
from vmm_client.exits import Exit
from vmm_client.machine import Machine

DEBUG_PORT: Final = 0xE9
CONSOLE_PORTS: Final = (DEBUG_PORT, *range(COM1, COM1 + 8))

NEEDS: Final = {
    Mode.REAL: Need.REAL_MODE,
    Mode.PROTECTED: Need.PROTECTED_MODE,
    Mode.LONG: Need.LONG_MODE,
}


class DebugPort:
    """Port 0xe9 of Bochs and QEMU: what is written appears on the console; reads give 0xe9."""

    def read(self, _offset: int, _size: int) -> int:
        return DEBUG_PORT

    def write(self, _offset: int, _size: int, value: int) -> None:
        console.write(bytes([value]))


def run(  # noqa: PLR0913 - one for each option
    flat: Path,
    *,
    mode: Literal["real", "protected", "long"] = "real",
    engine: str = "auto",
    memory: Size = 16 << 20,
    priority: Priority = None,
    affinity: Cpus = None,
    load_address: int | None = None,
    trace: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> int:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    flat
        The binary, entered at its first byte with interrupts off.
    mode
        The mode it is entered in: real mode, protected mode with flat segments, or long mode with
        the lower 4 GiB mapped one to one.
    engine
        The engine to run it on; `auto` takes the first that can run this mode here.
    memory
        The guest's memory, as in `64K` or `16M`.
    load_address
        Where it goes; by default 0x7c00 in real mode, 0x100000 otherwise.
    trace
        Print every exit to stderr, but those of the console.
    priority
        As of nice(1), 0 to 19; by default the most urgent that policy allows.
    affinity
        The CPUs to keep to, as in `0-3,8`; by default all that policy allows.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    image = flat.read_bytes()
    with connect(socket) as core, core.create_ram(memory) as ram:
        if engine == "auto":
            engine = select_engine(core, NEEDS[Mode(mode)])
        with core.create_session(
            engine, label=_label(flat), priority=priority, affinity=affinity or ()
        ) as session:
            for piece in ram_pieces(ram.size):
                session.attach(ram, *piece)
            entry = load(session.memory, image, Mode(mode), load_address)
            pc = PC(console.write)
            pc.router.ports.add(DEBUG_PORT, 1, DebugPort())
            machine = Machine(session.create_vcpu(), pc, _trace if trace else None)
            return status_of(lambda: machine.run(entry.registers))


def _label(flat: Path) -> str:
    """The file's name, as far as core takes it for a label."""
    return "".join(filter(str.isprintable, flat.name))[:64]


def _trace(exit_: Exit) -> None:
    if exit_.reason is not Reason.PORT or exit_.address not in CONSOLE_PORTS:
        print(exit_, file=sys.stderr)
