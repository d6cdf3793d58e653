"""The instruction boundary: HLT, injection, interrupt window, pause, COMPLETE and FETCH."""

from __future__ import annotations

import resource

import pytest

from core_service.engine.protocol import Status, Transport, Type
from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, ExitFlag, Injection, InjectType, Reason, ReplyFlag
from tests.engine.harness import ORIGIN, Engine, Vcpu, guest

VECTOR = 0x20

# Real mode: vector 0x20 of the table at 0 reports itself at port 0x90 and returns.
HANDLER = """
    jmp main
    handler: push ax; mov al, 0x77; out 0x90, al; pop ax; iret
    main:
    xor ax, ax; mov ds, ax
    mov word ptr [4 * 0x20], offset handler; mov word ptr [4 * 0x20 + 2], ax
    mov word ptr [4 * 0x2], offset handler; mov word ptr [4 * 0x2 + 2], ax
    mov word ptr [4 * 0x6], offset handler; mov word ptr [4 * 0x6 + 2], ax
"""


def handler_ran(vcpu: Vcpu) -> None:
    """The last exit is the handler's."""
    assert vcpu.reason == Reason.PORT, vcpu.describe()
    assert (vcpu.exit.address, vcpu.exit.value) == (0x90, 0x77)


def inject(vcpu: Vcpu, kind: InjectType = InjectType.INTERRUPT, vector: int = VECTOR) -> None:
    """With the next run."""
    vcpu.reply.inject(kind, vector)


def test_hlt_repeats_until_something_wakes(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "hlt; out 0x80, al; hlt") as vcpu:
        for _ in range(3):
            assert vcpu.expect(Reason.HLT).ip == ORIGIN
        vcpu.charge(rax=0x12)  # is no reason to wake
        assert vcpu.expect(Reason.HLT).ip == ORIGIN
        vcpu.charge(rip=ORIGIN + 1)
        assert vcpu.expect(Reason.PORT).value == 0x12
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 3


def test_active_wakes_past_the_hlt(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "hlt; out 0x80, al; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.charge(activity=Activity.ACTIVE)
        vcpu.expect(Reason.PORT)


def test_halted_can_be_restored(engine: Engine, transport: Transport) -> None:
    """As after a migration: rip at the HLT, activity HALTED; it wakes past it."""
    with guest(engine, transport, "nop; hlt; out 0x80, al; hlt") as vcpu:
        vcpu.charge(rip=ORIGIN + 1, activity=Activity.HALTED)
        assert vcpu.expect(Reason.HLT).ip == ORIGIN + 1
        assert vcpu.fetch("rip", "activity") == {"rip": ORIGIN + 1, "activity": Activity.HALTED}
        vcpu.charge(activity=Activity.ACTIVE)
        vcpu.expect(Reason.PORT)


def test_an_interrupt_wakes_from_hlt_and_returns_behind_it(
    engine: Engine, transport: Transport
) -> None:
    with guest(engine, transport, HANDLER + "sti; hlt; out 0x80, al; cli; hlt", "real") as vcpu:
        exit_ = vcpu.expect(Reason.HLT)
        assert exit_.flags & ExitFlag.IF
        assert exit_.flags & ExitFlag.INTERRUPTIBLE
        inject(vcpu)
        vcpu.run()
        handler_ran(vcpu)
        assert vcpu.exit.injection == Injection.TAKEN
        assert vcpu.expect(Reason.PORT).address == 0x80
        assert vcpu.exit.injection == Injection.NONE
        exit_ = vcpu.expect(Reason.HLT)
        assert not exit_.flags & (ExitFlag.IF | ExitFlag.INTERRUPTIBLE)


def test_an_interrupt_is_not_taken_with_the_flag_clear(
    engine: Engine, transport: Transport
) -> None:
    source = HANDLER + "cli; out 0x80, al; sti; nop; nop; out 0x81, al; hlt"
    with guest(engine, transport, source, "real") as vcpu:
        assert vcpu.expect(Reason.PORT).address == 0x80
        inject(vcpu)
        assert vcpu.expect(Reason.PORT).address == 0x81  # never delivered, also not later
        assert vcpu.exit.injection == Injection.NOT_TAKEN
        assert vcpu.expect(Reason.HLT).injection == Injection.NONE


def test_an_interrupt_is_taken_once_after_the_instruction(
    engine: Engine, transport: Transport
) -> None:
    source = HANDLER + "sti; nop; in al, 0x60; out 0x80, al; cli; hlt"
    with guest(engine, transport, source, "real") as vcpu:
        exit_ = vcpu.expect(Reason.PORT)
        assert exit_.flags & ExitFlag.IF
        vcpu.reply.set_value(0x42)
        inject(vcpu)
        vcpu.run()
        handler_ran(vcpu)
        assert vcpu.exit.injection == Injection.TAKEN
        exit_ = vcpu.expect(Reason.PORT)
        assert (exit_.address, exit_.value) == (0x80, 0x42)
        vcpu.expect(Reason.HLT)


@pytest.mark.parametrize("shadow", [0, 1, 2])
def test_no_interrupt_in_the_shadow(engine: Engine, transport: Transport, shadow: int) -> None:
    """Of STI (1) or MOV SS (2): the next instruction comes first."""
    with guest(engine, transport, HANDLER + "cli; hlt; out 0x80, al; hlt", "real") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.charge(rflags=0x202, interruptibility=shadow, activity=Activity.ACTIVE)
        inject(vcpu)
        vcpu.run()
        if shadow:
            assert (vcpu.reason, vcpu.exit.address) == (Reason.PORT, 0x80)
            assert vcpu.exit.injection == Injection.NOT_TAKEN
        else:
            handler_ran(vcpu)
            assert vcpu.exit.injection == Injection.TAKEN


def test_an_nmi_is_taken_with_the_flag_clear(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, HANDLER + "cli; hlt; out 0x80, al; hlt", "real") as vcpu:
        vcpu.expect(Reason.HLT)
        inject(vcpu, InjectType.NMI, 2)
        vcpu.run()
        handler_ran(vcpu)
        assert vcpu.exit.injection == Injection.TAKEN
        assert vcpu.expect(Reason.PORT).address == 0x80


def test_an_nmi_within_an_nmi_wakes_nobody(engine: Engine, transport: Transport) -> None:
    source = HANDLER.replace("out 0x90, al", "out 0x90, al; hlt") + "hlt; out 0x80, al; hlt"
    with guest(engine, transport, source, "real") as vcpu:
        vcpu.expect(Reason.HLT)
        inject(vcpu, InjectType.NMI, 2)
        vcpu.run()
        handler_ran(vcpu)
        within = vcpu.expect(Reason.HLT).ip
        inject(vcpu, InjectType.NMI, 2)
        assert vcpu.expect(Reason.HLT).ip == within
        assert vcpu.exit.injection == Injection.TAKEN


def test_an_exception_is_taken_always(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, HANDLER + "cli; hlt; hlt", "real") as vcpu:
        vcpu.expect(Reason.HLT)
        inject(vcpu, InjectType.EXCEPTION, 6)
        vcpu.run()
        handler_ran(vcpu)
        assert vcpu.exit.injection == Injection.TAKEN


def test_window_opens_when_the_guest_allows_interrupts(
    engine: Engine, transport: Transport
) -> None:
    source = HANDLER + "cli; out 0x80, al; nop; out 0x81, al; sti; 1: jmp 1b"
    with guest(engine, transport, source, "real") as vcpu:
        assert vcpu.expect(Reason.PORT).address == 0x80
        vcpu.window()
        assert vcpu.expect(Reason.PORT).address == 0x81
        exit_ = vcpu.expect(Reason.WINDOW)
        assert exit_.window_ack == 1
        assert exit_.flags & ExitFlag.INTERRUPTIBLE
        inject(vcpu)
        vcpu.run()
        handler_ran(vcpu)
        assert vcpu.exit.injection == Injection.TAKEN


def test_window_of_a_halted_guest(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "sti; hlt; cli; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.window()
        assert vcpu.expect(Reason.WINDOW).window_ack == 1
        vcpu.expect(Reason.HLT)
        vcpu.charge(activity=Activity.ACTIVE)
        vcpu.expect(Reason.HLT)
        vcpu.window()
        vcpu.expect(Reason.HLT)  # the flag is clear
        vcpu.reply.set_flags(ReplyFlag.WITHDRAW_WINDOW)
        vcpu.charge(rflags=0x202)
        vcpu.expect(Reason.HLT)  # nobody asks any more


def test_window_of_a_running_guest(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "sti; 1: jmp 1b") as vcpu:
        vcpu.start()
        vcpu.window()
        vcpu.wait()
        assert vcpu.reason == Reason.WINDOW


def test_window_asked_for_in_the_middle_of_an_instruction(
    engine: Engine, transport: Transport
) -> None:
    with guest(engine, transport, "sti; nop; out 0x80, al; out 0x81, al; hlt") as vcpu:
        assert vcpu.expect(Reason.PORT).flags & ExitFlag.INTERRUPTIBLE
        vcpu.window()
        vcpu.expect(Reason.WINDOW)
        assert vcpu.expect(Reason.PORT).address == 0x81


def test_a_taken_injection_does_not_consume_the_window(
    engine: Engine, transport: Transport
) -> None:
    with guest(engine, transport, HANDLER + "sti; hlt; 1: jmp 1b", "real") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.window()
        inject(vcpu)
        vcpu.run()
        handler_ran(vcpu)
        vcpu.expect(Reason.WINDOW)


def test_pause_of_a_guest_that_never_exits(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "1: jmp 1b") as vcpu:
        for number in range(1, 4):
            vcpu.start()
            vcpu.pause()
            vcpu.wait()
            assert vcpu.reason == Reason.PAUSED
            assert vcpu.exit.pause_ack == number
            assert vcpu.scalar("rip") == ORIGIN


def test_pause_does_not_need_a_queue_of_signals(engine: Engine, transport: Transport) -> None:
    """The kernel counts queued signals by user: other engines may have used them up."""
    with guest(engine, transport, "1: jmp 1b") as vcpu:
        resource.prlimit(engine.pid, resource.RLIMIT_SIGPENDING, (0, 0))
        vcpu.start()
        vcpu.pause()
        vcpu.wait()
        assert vcpu.reason == Reason.PAUSED


def test_pauses_coalesce(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        for _ in range(5):
            vcpu.pause()
        assert vcpu.expect(Reason.PAUSED).pause_ack == 5
        vcpu.expect(Reason.HLT)


def test_pause_of_a_stopped_vcpu_completes_its_instruction_first(
    engine: Engine, transport: Transport
) -> None:
    with guest(engine, transport, "in al, 0x60; out 0x80, al; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        vcpu.pause()
        vcpu.reply.set_value(0x5A)
        vcpu.want("rip", "rax")
        vcpu.expect(Reason.PAUSED)
        assert vcpu.exit.registers()["rip"] == ORIGIN + 2
        assert vcpu.exit.registers()["rax"] == 0x5A
        assert vcpu.expect(Reason.PORT).value == 0x5A


def test_a_fetch_answers_no_pause_and_no_window(engine: Engine, transport: Transport) -> None:
    """The exit that a fetch publishes again is the same: what is asked meanwhile is still owed."""
    with guest(engine, transport, "sti; nop; 1: jmp 1b") as vcpu:
        vcpu.pause()
        assert vcpu.expect(Reason.PAUSED).pause_ack == 1
        vcpu.pause()
        vcpu.fetch("rip")
        assert vcpu.exit.pause_ack == 1
        assert vcpu.expect(Reason.PAUSED).pause_ack == 2
        vcpu.window()
        assert vcpu.expect(Reason.WINDOW).window_ack == 1
        vcpu.window()
        vcpu.fetch("rip")
        assert vcpu.expect(Reason.WINDOW).window_ack == 2


def test_a_fetch_keeps_what_became_of_the_injection(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "cli; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        inject(vcpu)
        assert vcpu.expect(Reason.HLT).injection == Injection.NOT_TAKEN
        vcpu.fetch("rip")
        assert vcpu.exit.injection == Injection.NOT_TAKEN


def test_pause_of_a_vcpu_that_never_ran(engine: Engine, transport: Transport) -> None:
    with engine.ram():
        vcpu = Vcpu(engine, transport)
        vcpu.pause()
        vcpu.expect(Reason.STARTUP)
        vcpu.want("rip", "cs")
        vcpu.expect(Reason.PAUSED)
        assert vcpu.exit.registers()["rip"] == 0xFFF0
        vcpu.close()


def test_complete_stops_behind_the_instruction(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "in al, 0x60; out 0x80, al; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        vcpu.reply.set_flags(ReplyFlag.COMPLETE)
        vcpu.reply.set_value(0x11)
        vcpu.want("rax", "rip")
        vcpu.expect(Reason.COMPLETED)
        assert vcpu.exit.registers() == {"rax": 0x11, "rip": ORIGIN + 2}
        vcpu.charge(rax=0x22)
        assert vcpu.expect(Reason.PORT).value == 0x22


def test_registers_charged_mid_instruction_are_applied_behind_it(
    engine: Engine, transport: Transport
) -> None:
    with guest(engine, transport, "in al, 0x60; out 0x80, al; out 0x81, al; hlt") as vcpu:
        vcpu.expect(Reason.PORT)
        vcpu.reply.set_value(0x11)
        vcpu.charge(rax=0x99)
        assert vcpu.expect(Reason.PORT).value == 0x99
        vcpu.charge(rip=ORIGIN + 6, rbx=7)  # skips the next out
        vcpu.expect(Reason.HLT)
        assert vcpu.scalar("rbx") == 7


def test_fetch_gives_the_same_exit_with_registers(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "mov eax, 0x1234; out 0x80, ax; hlt") as vcpu:
        first = vcpu.expect(Reason.PORT)
        record = (first.address, first.size, first.count, first.value, first.flags)
        sequence = first.exit_seq
        assert vcpu.fetch("rax") == {}  # in the middle of an instruction
        again = vcpu.exit
        assert (again.address, again.size, again.count, again.value, again.flags) == record
        assert again.exit_seq == sequence + 1
        vcpu.expect(Reason.HLT)
        assert vcpu.fetch("rax") == {"rax": 0x1234}
        assert vcpu.reason == Reason.HLT


def test_wanted_registers_come_with_every_exit(engine: Engine, transport: Transport) -> None:
    with guest(engine, transport, "mov eax, 5; hlt; mov eax, 6; hlt") as vcpu:
        vcpu.want("rax", "cs")
        vcpu.expect(Reason.HLT)
        assert set(vcpu.exit.registers()) == {"rax", "cs"}
        assert vcpu.exit.register("rax") == 5
        cs = vcpu.exit.register("cs")
        assert isinstance(cs, Segment)
        assert cs.selector == 8
        vcpu.want("rax", "cs")
        vcpu.charge(activity=Activity.ACTIVE)
        vcpu.expect(Reason.HLT)
        assert vcpu.exit.register("rax") == 6


@pytest.mark.parametrize("flags", [0x2, 0x202])
def test_interrupts_at_startup_follow_the_charged_flags(
    engine: Engine, transport: Transport, flags: int
) -> None:
    """Charged registers come before the injection of the same reply."""
    with guest(engine, transport, HANDLER + "hlt; out 0x80, al; hlt", "real") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.charge(rflags=flags)
        inject(vcpu)
        vcpu.run()
        if flags & 0x200:
            handler_ran(vcpu)
            assert vcpu.exit.injection == Injection.TAKEN
        else:
            assert vcpu.reason == Reason.HLT
            assert vcpu.exit.injection == Injection.NOT_TAKEN


@pytest.mark.parametrize("how", ["fetch", "state"])
def test_what_the_channel_sets_shows_in_the_exit(
    engine: Engine, transport: Transport, how: str
) -> None:
    """SET_STATE opens the window: the exit at which the vCPU stands says so from then on."""
    with guest(engine, transport, "cli; hlt") as vcpu:
        assert not vcpu.expect(Reason.HLT).flags & ExitFlag.IF
        vcpu.charge(rflags=0x202)
        assert vcpu.packet_status(Type.SET_STATE) == Status.OK
        vcpu.reply.clear_reply()
        if how == "fetch":
            vcpu.fetch("rip")
        flags = vcpu.exit.flags if how == "fetch" else vcpu.state("rip").flags
        assert flags & (ExitFlag.IF | ExitFlag.INTERRUPTIBLE) == (
            ExitFlag.IF | ExitFlag.INTERRUPTIBLE
        )


@pytest.fixture
def nmi_windows(engine: Engine) -> Engine:
    """An engine that has them."""
    if not engine.offer.exit_reasons >> Reason.NMI_WINDOW & 1:
        pytest.skip(f"{engine.offer.engine} has no NMI windows")
    return engine


def in_an_nmi(vcpu: Vcpu) -> None:
    """At the handler's exit."""
    vcpu.expect(Reason.HLT)
    inject(vcpu, InjectType.NMI, 2)
    vcpu.run()
    handler_ran(vcpu)


def test_an_engine_without_nmi_windows_refuses(engine: Engine, transport: Transport) -> None:
    if engine.offer.exit_reasons >> Reason.NMI_WINDOW & 1:
        pytest.skip(f"{engine.offer.engine} has NMI windows")
    with guest(engine, transport, "hlt") as vcpu:
        vcpu.reply.set_flags(ReplyFlag.NMI_WINDOW)
        assert vcpu.expect(Reason.INVALID_STATE).detail == 1  # REFUSED_FLAGS


def test_an_nmi_window_opens_behind_the_handler(nmi_windows: Engine, transport: Transport) -> None:
    """Asked for once, told once; an NMI in between waits behind the first one."""
    source = HANDLER + "cli; hlt; nop; out 0x80, al; hlt"
    with guest(nmi_windows, transport, source, "real") as vcpu:
        in_an_nmi(vcpu)
        vcpu.reply.set_flags(ReplyFlag.NMI_WINDOW)
        exit_ = vcpu.expect(Reason.NMI_WINDOW)
        assert exit_.flags & ExitFlag.NMI_OPEN
        inject(vcpu, InjectType.NMI, 2)
        vcpu.run()
        handler_ran(vcpu)
        assert vcpu.exit.injection == Injection.TAKEN
        assert vcpu.expect(Reason.PORT).address == 0x80


def test_an_nmi_window_can_be_withdrawn(nmi_windows: Engine, transport: Transport) -> None:
    with guest(nmi_windows, transport, HANDLER + "cli; hlt; out 0x80, al", "real") as vcpu:
        in_an_nmi(vcpu)
        vcpu.reply.set_flags(ReplyFlag.NMI_WINDOW | ReplyFlag.COMPLETE)
        vcpu.expect(Reason.COMPLETED)
        vcpu.reply.set_flags(ReplyFlag.WITHDRAW_WINDOW)
        assert vcpu.expect(Reason.PORT).address == 0x80


def test_the_nmi_window_comes_before_the_other(nmi_windows: Engine, transport: Transport) -> None:
    with guest(nmi_windows, transport, "sti; hlt") as vcpu:
        vcpu.expect(Reason.HLT)
        vcpu.window()
        vcpu.reply.set_flags(ReplyFlag.NMI_WINDOW)
        vcpu.expect(Reason.NMI_WINDOW)
        assert vcpu.expect(Reason.WINDOW).window_ack == 1
        vcpu.expect(Reason.HLT)
