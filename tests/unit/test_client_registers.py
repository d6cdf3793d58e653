"""Registers by name and by attribute: valid, charged, neither."""

from collections.abc import Iterator

import pytest

from dataspace.registers import SCALARS, SEGMENTS, Segment
from dataspace.vcpu_page import FPU_CHARGED, Reason
from tests.unit.client_scripted_engine import (
    FPU_SIZE,
    Record,
    Script,
    ScriptedEngine,
    Values,
    vcpu_on,
)
from vmm_client.errors import NotValid, VmsessionError
from vmm_client.registers import Registers, Scalar, SegmentRegister

STACK = Segment(0x18, 0xC93, 0xFFFFFFFF, 0)
DELIVERED: Values = {"rax": 7, "rip": 0x1000, "ss": STACK}


@pytest.fixture
def registers() -> Iterator[Registers]:
    def script() -> Script:
        yield Record(Reason.HLT, registers=DELIVERED | {"fpu": 0})

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        next(vcpu.exits())
        yield vcpu.registers
        vcpu.close()


def test_every_register_is_an_attribute() -> None:
    members = vars(Registers)
    assert {name for name in SCALARS if isinstance(members.get(name), Scalar)} == set(SCALARS)
    segments = {name for name in SEGMENTS if isinstance(members.get(name), SegmentRegister)}
    assert segments == set(SEGMENTS)


def test_what_the_engine_delivered_can_be_read(registers: Registers) -> None:
    assert registers.rax == registers["rax"] == 7
    assert registers.ss == STACK
    assert dict(registers) == DELIVERED
    assert len(registers) == 3


def test_what_it_did_not_deliver_is_not_valid(registers: Registers) -> None:
    with pytest.raises(NotValid, match=r"^register rbx is not valid at this exit$") as caught:
        _ = registers.rbx
    assert isinstance(caught.value, VmsessionError)
    assert "wanted" in caught.value.hint
    assert registers.get("cs") is None
    assert "cs" not in registers


def test_a_charged_register_is_read_back_and_discharging_shows_the_old_value(
    registers: Registers,
) -> None:
    registers.rax = 8
    registers["rbx"] = 9
    registers.ss = STACK._replace(base=0x10)
    assert (registers.rax, registers.rbx, registers.ss.base) == (8, 9, 0x10)
    registers.discharge("rax")
    assert (registers.rax, registers.rbx) == (7, 9)
    registers.discharge()
    assert dict(registers) == DELIVERED


def test_update_charges_many(registers: Registers) -> None:
    registers.update({"rsp": 0x8000, "cs": STACK})
    assert (registers.rsp, registers.cs) == (0x8000, STACK)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("rax", 1 << 64, ValueError),
        ("rax", STACK, TypeError),
        ("ss", 3, TypeError),
        ("ss", STACK._replace(limit=1 << 32), ValueError),
        ("eax", 3, KeyError),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    registers: Registers, name: str, value: int | Segment, error: type[Exception]
) -> None:
    with pytest.raises(error):
        registers[name] = value
    assert dict(registers) == DELIVERED


def test_no_register_is_misspelt_in_silence(registers: Registers) -> None:
    with pytest.raises(AttributeError):
        registers.eax = 1  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        registers["eax"]
    with pytest.raises(KeyError):
        registers.discharge("eax")


def test_the_fpu_area_is_read_and_charged_whole() -> None:
    def script() -> Script:
        yield Record(Reason.HLT, registers={"fpu": 0})
        yield Record(Reason.HLT)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        exits = vcpu.exits()
        next(exits)
        assert vcpu.registers.fpu == bytes(FPU_SIZE)
        area = bytes(n & 0xFF for n in range(FPU_SIZE))
        with pytest.raises(ValueError, match=f"has {FPU_SIZE} bytes, this has 5"):
            vcpu.registers.fpu = bytes(5)
        vcpu.registers.fpu = area
        assert vcpu.registers.fpu == area
        assert engine.mapping[FPU_CHARGED : FPU_CHARGED + FPU_SIZE] == area
        next(exits)
        with pytest.raises(NotValid):
            _ = vcpu.registers.fpu
        exits.close()
        vcpu.close()
