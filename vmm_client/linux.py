"""A stock Linux on a PC, from its images to its end: what `vmm boot` and the demo run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from vmm_client.boards.pc import LINUX_HARDWARE, LINUX_HASTE, PC, Ending, ram_pieces
from vmm_client.boot.linux import load
from vmm_client.connection import Connection
from vmm_client.machine import Machine


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """A bzImage and an initrd, as bytes; `extra` goes to the end of the command line."""

    kernel: bytes
    initrd: bytes = b""
    extra: str = ""

    @property
    def command_line(self) -> str:
        """What this board needs, what hastens the boot, what the user adds."""
        return f"{LINUX_HARDWARE} {LINUX_HASTE} {self.extra}".rstrip()


class LinuxMachine:
    """Owns a session with its memory until it is closed; a context manager."""

    def __init__(  # noqa: PLR0913 - what a machine is made of
        self,
        core: Connection,
        engine: str,
        image: LinuxImage,
        memory: int,
        console: Callable[[bytes], None],
        *,
        priority: int | None = None,
        affinity: Iterable[int] = (),
    ) -> None:
        with ExitStack() as made:
            ram = made.enter_context(core.create_ram(memory))
            session = core.create_session(
                engine, label="linux", priority=priority, affinity=affinity
            )
            self.session = made.enter_context(session)
            for piece in ram_pieces(ram.size):
                self.session.attach(ram, *piece)
            self._pc = PC(console, wake=self._wake)
            rsdp = self._pc.startup(self.session.memory)
            self._entry = load(
                self.session.memory,
                image.kernel,
                command_line=image.command_line,
                initrd=image.initrd,
                rsdp=rsdp,
            )
            self._vcpu = self.session.create_vcpu()
            self._machine = Machine(self._vcpu, self._pc)
            self._resources = made.pop_all()

    def run(self) -> Ending:
        """Until the guest ends. Raises GuestFailed, SessionEnded."""
        return self._machine.run(self._entry.registers)

    def leave(self) -> None:
        """End it from any thread: `run` returns Ending.LEFT."""
        self._machine.leave()

    def receive(self, typed: bytes) -> int:
        """Input for the console, from any thread. Returns how many bytes were taken: the others are
        to be offered again, when the guest has read some."""
        return self._pc.receive(typed)

    def _wake(self) -> None:
        self._machine.wake()

    def close(self) -> None:
        """End the session and free its memory."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
