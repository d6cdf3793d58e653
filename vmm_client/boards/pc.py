"""The PC that a VMM plays for its guest: devices wired as in an AT, and nothing of the engine.

Whoever runs the vCPU calls, on one thread:

- `port_read`, `port_write`, `mmio_read`, `mmio_write`, or `router`, for I/O and MMIO exits.
- `halt` for HLT.
- `advance`, then `pending` before each run; if the engine took that vector, `acknowledge` before
  the next exit is handled.
- After HLT: `advance` whenever `next_deadline` has come or `wake` was called (there is input), and
  run on once there is something `pending`.
- `ended` says that the machine powered itself off, reset itself, or sleeps for ever.

A stock Linux (Debian's 6.1 cloud kernel was measured) finds the ACPI tables, runs on the legacy
interrupt controllers, powers off through S5 and reboots through the reset register; ACPI costs its
boot no time that could be seen.

Only `receive` and `leave` may be called from another thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from vmm_client.boot.acpi import FixedHardware, write_tables
from vmm_client.boot.entry import HIGH_RAM, LOW_RAM_END, GuestMemory
from vmm_client.devices.acpi_power import PowerControl, PowerEvents, PowerTimer
from vmm_client.devices.pic8259 import CascadedPics
from vmm_client.devices.pit8254 import Pit8254
from vmm_client.devices.port61 import Port61
from vmm_client.devices.reset import KeyboardController, Port92, ResetControl
from vmm_client.devices.rtc_cmos import CENTURY, RtcCmos
from vmm_client.devices.uart16550 import Uart16550
from vmm_client.router import Router

IRQ_TIMER: Final = 0
IRQ_COM1: Final = 4
IRQ_SCI: Final = 9

COM1: Final = 0x3F8

# What Linux must be told of this board: no APIC, no PCI, no ports that need a delay.
LINUX_HARDWARE: Final = "console=ttyS0,115200 noapic nolapic pci=off io_delay=none"
# What makes it boot in half the time on a software CPU: above all no self-tests of ciphers.
LINUX_HASTE: Final = "quiet panic=-1 nokaslr mitigations=off random.trust_cpu=on cryptomgr.notests"
FIXED_HARDWARE: Final = FixedHardware(
    sci=IRQ_SCI,
    power_events=0x600,
    power_control=0x604,
    power_timer=0x608,
    reset=0xCF9,
    reset_value=0x06,
    century=CENTURY,
)


class Ending(Enum):
    """Why a machine will not run on."""

    POWER_OFF = "power off"
    RESET = "reset"
    HALTED = "halted with interrupts off"
    LEFT = "left by its user"


class RamPiece(NamedTuple):
    """`size` bytes of the PC's RAM from `offset`, seen by the guest at `gpa`."""

    gpa: int
    offset: int
    size: int


def ram_pieces(size: int) -> list[RamPiece]:
    """Where `size` bytes of RAM are to be attached: what the devices displace goes behind 4 GiB."""
    low = min(size, LOW_RAM_END)
    high = RamPiece(HIGH_RAM, low, size - low)
    return [RamPiece(0, 0, low), high] if high.size else [RamPiece(0, 0, low)]


class PC:
    """`console` gets what the guest sends to COM1, `wake` is called from the thread of `receive`.
    `clock` is monotonic, `wall` counts from 1970, both in nanoseconds."""

    def __init__(
        self,
        console: Callable[[bytes], None],
        *,
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.router = Router()
        self.ended: Ending | None = None
        self.pics = CascadedPics()
        self.pit = Pit8254(clock, self._irq(IRQ_TIMER))
        self.uart = Uart16550(console, self._irq(IRQ_COM1), wake)
        self.rtc = RtcCmos(wall)
        self.next_deadline = self.pit.deadline
        self.pending = self.pics.pending
        self.acknowledge = self.pics.acknowledge
        self.port_read = self.router.ports.read
        self.port_write = self.router.ports.write
        self.mmio_read = self.router.mmio.read
        self.mmio_write = self.router.mmio.write
        self.receive = self.uart.receive
        self._wire(clock)

    def startup(self, memory: GuestMemory) -> int:
        """Writes what firmware would have left in `memory`; returns the ACPI RSDP's address."""
        return write_tables(memory, FIXED_HARDWARE)

    def advance(self, now: int) -> None:
        """Lets the devices act on the time `now` and on input that came."""
        self.pit.tick(now)
        self.uart.poll()

    def leave(self) -> None:
        """Its user has enough. Any thread; whoever runs the vCPU must be woken."""
        self._end(Ending.LEFT)

    def halt(self, *, interrupts_enabled: bool) -> None:
        """Notes a HLT. With interrupts off nothing here can end it: no device raises an NMI."""
        if not interrupts_enabled:
            self._end(Ending.HALTED)

    def _wire(self, clock: Callable[[], int]) -> None:
        ports = self.router.ports
        ports.add(0x20, 2, self.pics.master)
        ports.add(0xA0, 2, self.pics.slave)
        ports.add(0x4D0, 2, self.pics.edge_level)
        ports.add(0x40, 4, self.pit)
        ports.add(0x61, 1, Port61(self.pit, clock))
        ports.add(0x70, 2, self.rtc)
        ports.add(COM1, 8, self.uart)
        ports.add(0x64, 1, KeyboardController(self._reset))
        ports.add(0x92, 1, Port92(self._reset))
        reset_control = ResetControl(self._reset)
        ports.add(
            FIXED_HARDWARE.reset - reset_control.REGISTER, reset_control.SIZE, reset_control, 4
        )
        ports.add(FIXED_HARDWARE.power_events, 4, PowerEvents(), width=4)
        ports.add(FIXED_HARDWARE.power_control, 2, PowerControl(self._power_off), width=2)
        ports.add(FIXED_HARDWARE.power_timer, 4, PowerTimer(clock), width=4)

    def _irq(self, number: int) -> Callable[[int], None]:
        line = self.pics.line
        return lambda level: line(number, level)

    def _reset(self) -> None:
        self._end(Ending.RESET)

    def _power_off(self) -> None:
        self._end(Ending.POWER_OFF)

    def _end(self, ending: Ending) -> None:
        """The first ending is the one that counts."""
        if self.ended is None:
            self.ended = ending
