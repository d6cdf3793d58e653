"""Reset, power and system control ports."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import pytest

from vmm_client.devices.acpi_power import PowerControl, PowerEvents, PowerTimer
from vmm_client.devices.pit8254 import Pit8254, nanoseconds
from vmm_client.devices.port61 import REFRESH_NS, Port61
from vmm_client.devices.reset import KeyboardController, Port92, ResetControl


def test_keyboard_controller_resets_by_its_pulse_command_alone() -> None:
    reset = Mock()
    controller = KeyboardController(reset)
    for command in range(0xFE):
        controller.write(0, 1, command)
    reset.assert_not_called()
    controller.write(0, 1, 0xFE)
    reset.assert_called_once_with()


def test_keyboard_controller_never_keeps_a_writer_waiting() -> None:
    assert KeyboardController(Mock()).read(0, 1) & 0x02 == 0


@pytest.mark.parametrize(
    ("device", "offset", "bit", "mode"),
    [(Port92, 0, 0x01, 0x00), (ResetControl, 1, 0x04, 0x02)],
)
def test_reset_ports_act_on_a_rising_bit(
    device: Callable[[Callable[[], None]], Port92 | ResetControl], offset: int, bit: int, mode: int
) -> None:
    reset = Mock()
    port = device(reset)
    port.write(offset, 1, mode)
    reset.assert_not_called()
    port.write(offset, 1, mode | bit)
    port.write(offset, 1, mode | bit)
    reset.assert_called_once_with()
    port.write(offset, 1, mode)
    port.write(offset, 1, mode | bit)
    assert reset.call_count == 2


def test_reset_control_keeps_its_mode_bits() -> None:
    port = ResetControl(Mock())
    port.write(1, 1, 0xFB)
    assert port.read(1, 1) == 0x0A


def test_a20_is_always_enabled() -> None:
    port = Port92(Mock())
    port.write(0, 1, 0x00)
    assert port.read(0, 1) == 0x02


def test_sleep_enable_with_the_type_of_s5_powers_off() -> None:
    power_off = Mock()
    control = PowerControl(power_off)
    control.write(0, 2, 5 << 10)
    control.write(0, 2, 0x2000)
    control.write(0, 2, 0x2000 | 4 << 10)
    power_off.assert_not_called()
    control.write(0, 2, 0x2000 | 5 << 10)
    power_off.assert_called_once_with()


def test_power_control_by_its_high_byte() -> None:
    power_off = Mock()
    PowerControl(power_off).write(1, 1, 0x34)
    power_off.assert_called_once_with()


def test_the_machine_is_in_acpi_mode() -> None:
    control = PowerControl(Mock())
    assert (control.read(0, 2), control.read(0, 1), control.read(1, 1)) == (1, 1, 0)


def test_power_events_have_an_enable_and_no_status() -> None:
    events = PowerEvents()
    events.write(0, 2, 0xFFFF)
    events.write(2, 2, 0x0120)
    assert (events.read(0, 2), events.read(2, 2)) == (0, 0x0120)
    events.write(3, 1, 0x05)
    assert (events.read(2, 1), events.read(3, 1)) == (0x20, 0x05)
    events.write(0, 4, 0xABCD_FFFF)
    assert events.read(0, 4) == 0xABCD_0000


def test_power_timer_counts_at_its_frequency_and_wraps() -> None:
    now = Mock(return_value=2_000_000_000)
    timer = PowerTimer(now)
    assert timer.read(0, 4) == 7_159_090
    assert timer.read(1, 1) == 7_159_090 >> 8 & 0xFF
    now.return_value = 1_200_000_000_000
    assert timer.read(0, 4) == 1200 * 3_579_545 % (1 << 32)


def test_power_timer_is_read_only() -> None:
    timer = PowerTimer(Mock(return_value=0))
    timer.write(0, 4, 0xFFFF_FFFF)
    assert timer.read(0, 4) == 0


def test_port_61_gates_channel_2_and_shows_its_out() -> None:
    clock = Mock(return_value=0)
    pit = Pit8254(clock, Mock())
    port = Port61(pit, clock)
    for offset, value in ((3, 0xB0), (2, 100), (2, 0)):
        pit.write(offset, 1, value)
    clock.return_value = nanoseconds(1000)
    assert port.read(0, 1) & 0x20 == 0
    port.write(0, 1, 0xF1)
    clock.return_value = nanoseconds(1099)
    assert port.read(0, 1) & 0x2F == 0x01
    clock.return_value = nanoseconds(1100)
    assert port.read(0, 1) & 0xEF == 0x21


def test_port_61_toggles_with_the_refresh() -> None:
    clock = Mock(return_value=0)
    port = Port61(Pit8254(clock, Mock()), clock)
    seen = []
    for step in range(4):
        clock.return_value = step * REFRESH_NS
        seen.append(port.read(0, 1) & 0x10)
    assert seen == [0, 0x10, 0, 0x10]
