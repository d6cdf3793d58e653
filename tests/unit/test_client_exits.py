"""What an exit tells, and how a bus answers it."""

import pytest

from dataspace.vcpu_page import ExitFlag, Injection, Reason
from tests.unit.client_scripted_engine import Answer, Record, Script, ScriptedEngine, vcpu_on
from vmm_client.errors import UnknownExit
from vmm_client.exits import Exit

READ = ExitFlag.READ | ExitFlag.MID_INSTRUCTION
WRITE = ExitFlag.MID_INSTRUCTION


class Bus:
    """Remembers accesses; reads give consecutive numbers."""

    def __init__(self) -> None:
        self.accesses: list[tuple[int, int] | tuple[int, int, int]] = []

    def read(self, address: int, size: int) -> int:
        self.accesses.append((address, size))
        return len(self.accesses)

    def write(self, address: int, size: int, value: int) -> None:
        self.accesses.append((address, size, value))


def seen(record: Record) -> dict[str, object]:
    """What the library tells about a record, while the vCPU stands there."""
    told: dict[str, object] = {}

    def look(exit_: Exit) -> None:
        for name in (
            *("reason", "address", "is_read", "size", "count", "value", "data", "ip"),
            *("instruction_length", "instruction_bytes", "injection", "detail"),
            *("mid_instruction", "interruptible", "interrupts_enabled"),
        ):
            told[name] = getattr(exit_, name)
        told["text"] = str(exit_)

    with ScriptedEngine(lambda: iter_of(record)) as engine:
        vcpu = vcpu_on(engine)
        look(next(vcpu.exits()))
        vcpu.close()
    return told


def iter_of(*records: Record) -> Script:
    for record in records:  # noqa: UP028 - a tuple cannot be sent the answers
        yield record


def routed(record: Record) -> tuple[bool, Bus, Bus, Answer]:
    """What two buses saw of a record, and the answer that they gave."""
    answers: list[Answer] = []
    ports, mmio = Bus(), Bus()

    def script() -> Script:
        answers.append((yield record))
        yield Record(Reason.HLT)

    with ScriptedEngine(script) as engine:
        vcpu = vcpu_on(engine)
        exits = vcpu.exits()
        served = next(exits).route(ports, mmio)
        next(exits)
        exits.close()
        vcpu.close()
    return served, ports, mmio, answers[0]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            Record(Reason.PORT, WRITE, 0x3F8, 0x1122334455667788, 1, 1),
            {"is_read": False, "value": 0x88, "data": b"\x88", "mid_instruction": True},
        ),
        (
            Record(Reason.MMIO, READ, 0xFEE00000, 0, 4, 1),
            {"is_read": True, "address": 0xFEE00000, "size": 4, "count": 1},
        ),
        (
            Record(Reason.PORT, WRITE, 0x1F0, 0x0807060504030201, 2, 3),
            {"value": 0x060504030201, "data": bytes(range(1, 7))},
        ),
        (
            Record(Reason.PORT, WRITE, 0x1F0, 0, 4, 3, data=bytes(range(12))),
            {"data": bytes(range(12))},
        ),
        (
            Record(Reason.HLT, ExitFlag.IP_VALID | ExitFlag.IF, ip=0x1234, length=1),
            {"ip": 0x1234, "instruction_length": 1, "interrupts_enabled": True},
        ),
        (Record(Reason.HLT, ip=0x1234), {"ip": None, "interrupts_enabled": False}),
        (Record(Reason.WINDOW, ExitFlag.INTERRUPTIBLE), {"interruptible": True}),
        (Record(Reason.HLT, injection=1), {"injection": Injection.TAKEN}),
        (Record(Reason.HLT, injection=2), {"injection": Injection.NOT_TAKEN}),
        (Record(Reason.HLT, injection=77), {"injection": Injection.NONE}),
        (
            Record(Reason.INTERNAL_ERROR, detail=5, instruction=b"\x0f\x0b"),
            {"detail": 5, "instruction_bytes": b"\x0f\x0b"},
        ),
    ],
)
def test_an_exit_tells_its_record(record: Record, expected: dict[str, object]) -> None:
    told = seen(record)
    assert {name: told[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Record(Reason.PORT, WRITE, 0xE9, 0x48, 1, 1), "PORT out 0xe9 size 1 value 0x48"),
        (Record(Reason.PORT, READ, 0x60, size=1, count=1), "PORT in 0x60 size 1"),
        (
            Record(Reason.PORT, WRITE, 0x1F0, size=4, count=3, data=bytes(12)),
            "PORT out 0x1f0 size 4 count 3 data 000000000000000000000000",
        ),
        (Record(Reason.MMIO, WRITE, 0xB8000, 7, 2, 1), "MMIO write 0xb8000 size 2 value 0x7"),
        (Record(Reason.MSR, READ, 0x1B, size=8, count=1), "MSR rdmsr 0x1b"),
        (Record(Reason.MSR, WRITE, 0x1B, 5, 8, 1), "MSR wrmsr 0x1b value 0x5"),
        (Record(Reason.HLT, ExitFlag.IP_VALID, ip=0x10), "HLT at 0x10"),
        (Record(Reason.MEMORY_FAULT, ExitFlag.FETCH, 0x9000), "MEMORY_FAULT fetch 0x9000"),
        (Record(Reason.MEMORY_FAULT, 0, 0x9000), "MEMORY_FAULT write 0x9000"),
        (
            Record(Reason.INTERNAL_ERROR, detail=1, instruction=b"\x0f\x0b"),
            "INTERNAL_ERROR detail 1 bytes [0f 0b]",
        ),
    ],
)
def test_an_exit_is_one_line_for_people(record: Record, text: str) -> None:
    assert seen(record)["text"] == text


def test_a_write_reaches_its_bus() -> None:
    served, ports, mmio, _ = routed(Record(Reason.PORT, WRITE, 0xE9, 0x41, 1, 1))
    assert served
    assert (ports.accesses, mmio.accesses) == ([(0xE9, 1, 0x41)], [])


def test_a_read_is_answered_by_its_bus() -> None:
    served, ports, mmio, answer = routed(Record(Reason.MMIO, READ, 0xFEE00000, 0, 8, 1))
    assert served
    assert (ports.accesses, mmio.accesses) == ([], [(0xFEE00000, 8)])
    assert answer.value == 1


def test_a_string_for_a_port_arrives_one_by_one() -> None:
    data = (0x1111).to_bytes(2, "little") + (0x2222).to_bytes(2, "little")
    record = Record(Reason.PORT, WRITE, 0x1F0, int.from_bytes(data, "little"), 2, 2)
    _, ports, _, _ = routed(record)
    assert ports.accesses == [(0x1F0, 2, 0x1111), (0x1F0, 2, 0x2222)]


def test_a_string_from_a_port_is_put_together() -> None:
    _, ports, _, answer = routed(Record(Reason.PORT, READ, 0x1F0, size=2, count=6))
    assert ports.accesses == [(0x1F0, 2)] * 6
    assert answer.data[:12] == b"".join(n.to_bytes(2, "little") for n in range(1, 7))


def test_a_wide_mmio_access_arrives_as_two() -> None:
    data = bytes(range(16))
    _, _, mmio, _ = routed(Record(Reason.MMIO, WRITE, 0x1000, 0, 16, 1, data=data))
    halves = [int.from_bytes(data[at : at + 8], "little") for at in (0, 8)]
    assert mmio.accesses == [(0x1000, 8, halves[0]), (0x1008, 8, halves[1])]


@pytest.mark.parametrize(("size", "count"), [(0, 1), (1, 0), (0, 0)])
def test_an_access_of_no_bytes_is_no_exit(size: int, count: int) -> None:
    with pytest.raises(UnknownExit, match=f"{count} accesses of {size} bytes"):
        routed(Record(Reason.PORT, WRITE, 0x3F8, 0xFFFF, size, count))


def test_the_last_part_of_an_odd_access_is_shorter() -> None:
    _, _, mmio, answer = routed(Record(Reason.MMIO, READ, 0x1000, size=12, count=1))
    assert mmio.accesses == [(0x1000, 8), (0x1008, 4)]
    assert answer.data[:12] == (1).to_bytes(8, "little") + (2).to_bytes(4, "little")


def test_other_exits_are_left_to_the_vmm() -> None:
    served, ports, mmio, _ = routed(Record(Reason.HLT))
    assert not served
    assert (ports.accesses, mmio.accesses) == ([], [])


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_an_answer_beyond_64_bits_is_refused(value: int) -> None:
    with ScriptedEngine(lambda: iter_of(Record(Reason.PORT, READ, 1, size=1, count=1))) as engine:
        vcpu = vcpu_on(engine)
        exit_ = next(vcpu.exits())
        with pytest.raises(ValueError, match="invalid value"):
            exit_.reply(value)
        with pytest.raises(ValueError, match="at most 256 bytes, this has 257"):
            exit_.reply_data(bytes(257))
        vcpu.close()
