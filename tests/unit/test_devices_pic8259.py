"""The two 8259A against their data sheet."""

from __future__ import annotations

import pytest

from vmm_client.devices.pic8259 import CascadedPics, Pic8259

EOI, ROTATE_EOI, READ_IRR, READ_ISR, POLL = 0x20, 0xA0, 0x0A, 0x0B, 0x0C
SPECIAL_MASK_ON, SPECIAL_MASK_OFF = 0x68, 0x48


def initialise(pic: Pic8259, vector: int, cascade: int, icw4: int = 0x01, icw1: int = 0x11) -> None:
    pic.write(0, 1, icw1)
    for word in (vector, cascade, icw4):
        pic.write(1, 1, word)


@pytest.fixture
def pics() -> CascadedPics:
    """Vectors 0x20 and 0x28, nothing masked, as a PC's firmware leaves it but for the masks."""
    pics = CascadedPics()
    initialise(pics.master, 0x20, 0x04)
    initialise(pics.slave, 0x28, 0x02)
    return pics


def pulse(pics: CascadedPics, irq: int) -> None:
    pics.line(irq, 0)
    pics.line(irq, 1)


def eoi(pics: CascadedPics) -> None:
    pics.master.write(0, 1, EOI)


def register(pic: Pic8259, command: int) -> int:
    pic.write(0, 1, command)
    return pic.read(0, 1)


@pytest.mark.parametrize("irq", [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
def test_each_irq_has_its_vector(pics: CascadedPics, irq: int) -> None:
    assert pics.pending() is None
    pics.line(irq, 1)
    assert pics.pending() == 0x20 + irq
    assert pics.acknowledge() == 0x20 + irq
    assert pics.pending() is None


def test_looking_has_no_effect(pics: CascadedPics) -> None:
    pics.line(9, 1)
    assert [pics.pending() for _ in range(3)] == [0x29] * 3
    assert register(pics.slave, READ_ISR) == 0


def test_the_vector_base_has_five_bits() -> None:
    pic = Pic8259()
    initialise(pic, 0x4F, 0)
    assert pic.vector(3) == 0x4B


def test_an_edge_interrupts_once(pics: CascadedPics) -> None:
    pics.line(4, 1)
    pics.acknowledge()
    eoi(pics)
    pics.line(4, 1)
    assert pics.pending() is None
    pulse(pics, 4)
    assert pics.pending() == 0x24


def test_a_level_interrupts_as_long_as_it_lasts(pics: CascadedPics) -> None:
    pics.edge_level.write(1, 1, 0x02)
    pics.line(9, 1)
    assert pics.acknowledge() == 0x29
    pics.slave.write(0, 1, EOI)
    eoi(pics)
    assert pics.pending() == 0x29
    pics.line(9, 0)
    assert pics.pending() is None


def test_making_a_high_input_a_level_requests_it(pics: CascadedPics) -> None:
    pulse(pics, 5)
    pics.acknowledge()
    eoi(pics)
    pics.edge_level.write(0, 1, 0x20)
    assert pics.pending() == 0x25


def test_elcr_keeps_the_edges_that_a_pc_needs(pics: CascadedPics) -> None:
    for offset, kept in ((0, 0xF8), (1, 0xDE)):
        pics.edge_level.write(offset, 1, 0xFF)
        assert pics.edge_level.read(offset, 1) == kept


def test_fixed_priority_and_nesting(pics: CascadedPics) -> None:
    pics.line(4, 1)
    pics.line(3, 1)
    assert pics.acknowledge() == 0x23
    assert pics.pending() is None
    pics.line(1, 1)
    assert pics.acknowledge() == 0x21
    eoi(pics)
    assert pics.pending() is None
    eoi(pics)
    assert pics.pending() == 0x24


def test_an_equal_level_waits_for_its_eoi(pics: CascadedPics) -> None:
    pulse(pics, 3)
    pics.acknowledge()
    pulse(pics, 3)
    assert pics.pending() is None
    eoi(pics)
    assert pics.pending() == 0x23


def test_the_mask_holds_a_request_back(pics: CascadedPics) -> None:
    pics.master.write(1, 1, 0x10)
    pics.line(4, 1)
    assert pics.pending() is None
    assert register(pics.master, READ_IRR) == 0x10
    assert pics.master.read(1, 1) == 0x10
    pics.master.write(1, 1, 0)
    assert pics.pending() == 0x24


def test_masking_the_cascade_masks_the_slave(pics: CascadedPics) -> None:
    pics.line(12, 1)
    pics.master.write(1, 1, 0x04)
    assert pics.pending() is None


def test_a_request_that_went_away_is_the_default_ir7(pics: CascadedPics) -> None:
    pics.line(4, 1)
    pics.line(4, 0)
    assert pics.pending() is None
    assert pics.acknowledge() == 0x27
    assert register(pics.master, READ_ISR) == 0


def test_a_slave_without_a_request_answers_its_default_ir7(pics: CascadedPics) -> None:
    assert pics.slave.vector(pics.slave.acknowledge()) == 0x2F
    assert register(pics.slave, READ_ISR) == 0


def test_a_real_irq_7_is_in_service(pics: CascadedPics) -> None:
    pics.line(7, 1)
    assert pics.acknowledge() == 0x27
    assert register(pics.master, READ_ISR) == 0x80


def test_slave_interrupts_need_both_eois(pics: CascadedPics) -> None:
    pics.line(9, 1)
    pics.acknowledge()
    assert (register(pics.master, READ_ISR), register(pics.slave, READ_ISR)) == (0x04, 0x02)
    pulse(pics, 8)
    eoi(pics)
    assert pics.pending() == 0x28
    pics.acknowledge()
    pulse(pics, 10)
    eoi(pics)
    assert pics.pending() is None
    pics.slave.write(0, 1, EOI)
    assert pics.pending() is None
    pics.slave.write(0, 1, EOI)
    assert pics.pending() == 0x2A


def test_slave_requests_rank_between_irq_1_and_irq_3(pics: CascadedPics) -> None:
    for irq in (3, 15, 1):
        pics.line(irq, 1)
    order = []
    for _ in range(3):
        order.append(pics.acknowledge())
        pics.slave.write(0, 1, EOI)
        eoi(pics)
    assert order == [0x21, 0x2F, 0x23]


def test_special_fully_nested_mode_lets_a_slave_interrupt_itself() -> None:
    pics = CascadedPics()
    initialise(pics.master, 0x20, 0x04, icw4=0x11)
    initialise(pics.slave, 0x28, 0x02)
    pics.line(12, 1)
    pics.acknowledge()
    pics.line(9, 1)
    assert pics.pending() == 0x29
    pics.line(3, 1)
    assert pics.acknowledge() == 0x29
    assert pics.pending() is None


def test_specific_eoi_ends_that_level(pics: CascadedPics) -> None:
    for irq in (5, 3):
        pics.line(irq, 1)
        pics.acknowledge()
    pics.master.write(0, 1, 0x65)
    assert register(pics.master, READ_ISR) == 0x08


def test_rotation_on_eoi_makes_the_served_level_lowest(pics: CascadedPics) -> None:
    pics.line(3, 1)
    pics.acknowledge()
    pics.master.write(0, 1, ROTATE_EOI)
    pulse(pics, 3)
    pulse(pics, 7)
    assert pics.acknowledge() == 0x27
    pics.master.write(0, 1, ROTATE_EOI)
    assert pics.pending() == 0x23


def test_rotation_on_specific_eoi_and_set_priority(pics: CascadedPics) -> None:
    pics.master.write(0, 1, 0xC4)
    for irq in (4, 5, 0):
        pics.line(irq, 1)
    assert pics.acknowledge() == 0x25
    pics.master.write(0, 1, 0xE5)
    assert register(pics.master, READ_ISR) == 0
    assert pics.acknowledge() == 0x20


def test_automatic_eoi_leaves_nothing_in_service() -> None:
    pics = CascadedPics()
    initialise(pics.master, 0x20, 0x04, icw4=0x03)
    pics.line(4, 1)
    assert pics.acknowledge() == 0x24
    assert register(pics.master, READ_ISR) == 0
    pics.line(6, 1)
    assert pics.pending() == 0x26


def test_automatic_eoi_can_rotate() -> None:
    pics = CascadedPics()
    initialise(pics.master, 0x20, 0x04, icw4=0x03)
    pics.master.write(0, 1, 0x80)
    pulse(pics, 3)
    pics.acknowledge()
    pulse(pics, 3)
    pulse(pics, 5)
    assert pics.acknowledge() == 0x25
    pics.master.write(0, 1, 0x00)
    assert pics.acknowledge() == 0x23
    pulse(pics, 6)
    pulse(pics, 3)
    assert pics.pending() == 0x26


def test_special_mask_mode_lets_lower_levels_in(pics: CascadedPics) -> None:
    pics.line(3, 1)
    pics.acknowledge()
    pulse(pics, 3)
    pics.line(6, 1)
    pics.master.write(1, 1, 0x08)
    assert pics.pending() is None
    pics.master.write(0, 1, SPECIAL_MASK_ON)
    assert pics.pending() == 0x26
    pics.acknowledge()
    eoi(pics)
    assert register(pics.master, READ_ISR) == 0x08
    pics.line(7, 1)
    assert pics.pending() == 0x27
    pics.master.write(0, 1, SPECIAL_MASK_OFF)
    assert pics.pending() is None


def test_poll_acknowledges(pics: CascadedPics) -> None:
    assert register(pics.master, POLL) == 0x00
    pics.line(5, 1)
    assert register(pics.master, POLL) == 0x85
    assert register(pics.master, READ_ISR) == 0x20
    assert pics.pending() is None


def test_status_selection_lasts(pics: CascadedPics) -> None:
    pics.line(3, 1)
    pics.acknowledge()
    pics.line(5, 1)
    assert register(pics.master, READ_ISR) == 0x08
    assert pics.master.read(0, 1) == 0x08
    assert register(pics.master, READ_IRR) == 0x20


def test_initialisation_forgets_masks_service_and_edges(pics: CascadedPics) -> None:
    pics.line(3, 1)
    pics.acknowledge()
    pics.line(5, 1)
    pics.master.write(1, 1, 0xFF)
    initialise(pics.master, 0x40, 0x04)
    assert (pics.master.read(1, 1), register(pics.master, READ_ISR)) == (0, 0)
    assert register(pics.master, READ_IRR) == 0
    pulse(pics, 5)
    assert pics.pending() == 0x45


def test_initialisation_takes_as_many_words_as_icw1_says() -> None:
    pic = Pic8259()
    pic.write(0, 1, 0x12)  # single, no ICW4
    pic.write(1, 1, 0x60)
    pic.write(1, 1, 0xA5)
    assert (pic.vector(0), pic.read(1, 1)) == (0x60, 0xA5)
    pic.write(0, 1, 0x13)  # single, ICW4
    for word in (0x70, 0x03, 0x5A):
        pic.write(1, 1, word)
    assert (pic.vector(0), pic.read(1, 1)) == (0x70, 0x5A)


def test_level_triggered_mode_of_icw1() -> None:
    pics = CascadedPics()
    initialise(pics.master, 0x20, 0x04, icw1=0x19)
    pics.line(4, 1)
    pics.acknowledge()
    eoi(pics)
    assert pics.pending() == 0x24
