"""Two engines in lockstep: they agree, and where one is made to differ that is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dataspace.vcpu_page import Reason
from tests.conformance.diff.campaign import BITS, LOAD_ADDRESS, campaign
from tests.conformance.diff.sides import OtherAnswers, OtherMemory, OtherRegister, lockstep
from tests.guests.assemble import assemble
from vmm_client import Connection
from vmm_client.diff import DiffMode, Guest, Lockstep, Outcome, Side, pace
from vmm_client.diff.lockstep import CannotStep
from vmm_client.diff.pace import CannotLead
from vmm_client.diff.report import lines, record

SEEDS = range(12)
GROUPS = 40
IN_LOCKSTEP = pytest.mark.parametrize("step", [True, False], ids=["step", "exits"])

# Ports, single and as strings that engines split as they like; a fault at the end.
DEVICES = """
    mov edx, 0x20
    in al, dx
    out 0x21, ax
    mov esi, 0x500
    mov edi, 0x600
    mov ecx, 5
    rep outsb
    mov ecx, 3
    rep insw
    xor edx, edx
    div edx
"""
MEMORY_ONLY = """
    mov ecx, 7
    mov esi, 0x500
    mov edi, 0x600
    rep movsd
    bsf eax, ecx
    xor edx, edx
    div edx
"""


@pytest.fixture(scope="module")
def soft_and_kvm(client: Connection) -> Iterator[Lockstep]:
    """Used over and over, as a campaign does."""
    with lockstep(client, "soft", "kvm", Side) as both:
        yield both


def flat(source: str, mode: DiffMode) -> Guest:
    return Guest(assemble(source, BITS[mode], LOAD_ADDRESS), mode, LOAD_ADDRESS)


def told(outcome: Outcome) -> str:
    return "\n".join(lines(outcome, "stop"))


@pytest.mark.parametrize("mode", DiffMode)
def test_engines_agree_on_thousands_of_instructions(soft_and_kvm: Lockstep, mode: DiffMode) -> None:
    compared = 0
    for case in campaign(soft_and_kvm, mode, SEEDS, GROUPS):
        assert not case.outcome.differences, f"seed {case.seed}\n{told(case.outcome)}"
        assert case.outcome.ending is Reason.HLT
        compared += case.outcome.compared
    assert compared > len(SEEDS) * GROUPS


@IN_LOCKSTEP
@pytest.mark.parametrize("mode", [DiffMode.REAL, DiffMode.PROTECTED, DiffMode.LONG])
def test_devices_answer_alike(soft_and_kvm: Lockstep, mode: DiffMode, step: bool) -> None:
    outcome = soft_and_kvm.run(flat(DEVICES, mode), step=step, limit=100, seed=7)
    assert not outcome.differences, told(outcome)
    assert outcome.ending is Reason.HLT


@IN_LOCKSTEP
@pytest.mark.parametrize("engines", [("soft", "kvm"), ("kvm", "soft")], ids="-".join)
def test_ring_3_with_either_engine_first(
    client: Connection, engines: tuple[str, str], step: bool
) -> None:
    with lockstep(client, *engines, Side) as both:
        outcome = both.run(flat(MEMORY_ONLY, DiffMode.USER), step=step, limit=100)
    assert not outcome.differences, told(outcome)
    assert outcome.engines == engines
    assert outcome.ending is Reason.HLT


def test_the_limit_ends_it(soft_and_kvm: Lockstep) -> None:
    outcome = soft_and_kvm.run(flat("1: jmp 1b", DiffMode.REAL), step=True, limit=9)
    assert (outcome.compared, outcome.ending, outcome.differences) == (9, None, ())


def test_a_guest_after_one_that_shut_down(soft_and_kvm: Lockstep) -> None:
    shutdown = flat("lidt [0x3000]\nud2", DiffMode.PROTECTED)
    assert soft_and_kvm.run(shutdown, step=False, limit=9).ending is Reason.SHUTDOWN
    again = soft_and_kvm.run(flat(DEVICES, DiffMode.PROTECTED), step=True, limit=100)
    assert (again.ending, again.differences) == (Reason.HLT, ())


def test_memory_that_is_not_there_answers_alike(soft_and_kvm: Lockstep) -> None:
    source = "mov ebx, 0x100000\nmov eax, [ebx]\nadd [ebx], eax\nmov [ebx+8], ax\nhlt"
    outcome = soft_and_kvm.run(flat(source, DiffMode.LONG), step=True, limit=9)
    assert not outcome.differences, told(outcome)
    assert (outcome.compared, outcome.ending) == (5, Reason.HLT)


def test_a_jump_to_itself_cannot_be_led(
    client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SELF_JUMPS", 3)
    with lockstep(client, "soft", "soft") as both:
        steps = iter([True, False])
        monkeypatch.setattr(both, "_steps", lambda _side, _guest: next(steps))
        with pytest.raises(CannotLead, match="0x10000 jumps to itself"):
            both.run(flat("1: jmp 1b", DiffMode.USER), step=True, limit=9)


@pytest.mark.parametrize("mode", DiffMode)
def test_a_register_is_found_at_its_instruction(client: Connection, mode: DiffMode) -> None:
    """RBP differs from the beginning, and is told with the first stop."""
    with lockstep(client, "soft", "soft", OtherRegister) as both:
        outcome = both.run(flat("nop\nnop\nhlt", mode), step=True, limit=9)
    assert outcome.compared == 1
    assert [each.what for each in outcome.differences] == ["rbp"]
    assert outcome.differences[0].second == "0x1234"
    assert outcome.history[-1].rip == (0 if mode is DiffMode.REAL else LOAD_ADDRESS)


def test_a_register_is_found_where_one_engine_leads(client: Connection) -> None:
    with lockstep(client, "soft", "kvm", OtherRegister) as both:
        source = "xor eax, eax\ntest ebp, ebp\njz 1f\ninc eax\n1: nop\nhlt"
        outcome = both.run(flat(source, DiffMode.USER), step=True, limit=9)
    assert outcome.compared == 1
    assert [each.what for each in outcome.differences] == ["rbp"]


@IN_LOCKSTEP
def test_memory_is_found_by_its_first_byte(client: Connection, step: bool) -> None:
    with lockstep(client, "soft", "soft", OtherMemory) as both:
        outcome = both.run(flat("nop\nhlt", DiffMode.LONG), step=step, limit=9)
    (difference,) = outcome.differences
    assert difference.what == f"memory {OtherMemory.AT:#x}"
    assert (difference.first[:5], difference.second[:5]) == ("00 00", "5a 00")


@IN_LOCKSTEP
def test_an_access_is_found(client: Connection, step: bool) -> None:
    with lockstep(client, "soft", "soft", OtherAnswers) as both:
        source = "nop\nin al, 0x60\nhlt"
        outcome = both.run(flat(source, DiffMode.PROTECTED), step=step, limit=9)
    assert outcome.compared == (2 if step else 1)
    assert [each.what for each in outcome.differences] == ["access 0", "rax"]
    written = record(outcome, "instruction")
    assert written["differences"][0]["what"] == "access 0"
    assert written["engines"] == ["soft", "soft"]


def test_engines_that_cannot_step_say_so(
    client: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lockstep(client, "soft", "soft", Side) as both:
        monkeypatch.setattr(both, "_steps", lambda _side, _guest: False)
        with pytest.raises(CannotStep, match="mode real"):
            both.run(flat("hlt", DiffMode.REAL), step=True, limit=1)
