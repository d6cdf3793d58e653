"""Random steps with one vCPU, from several threads, each compared with the model.

An episode is one session: its guest is told what to do exit by exit, while threads pause it, ask for
windows, read its state, change its memory and attach memory next to it. All is decided by one seed; what
the threads make of it is not, and the model allows just that.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from vmsession.v1 import vcpu_pb2, vm_session_pb2

from dataspace._page import wait_any
from dataspace.vcpu_page import InjectType, Reason, ReplyFlag
from tests.conformance.stress import guest
from tests.conformance.stress.guest import Command
from tests.conformance.stress.model import (
    BETWEEN,
    Answer,
    DisagreementError,
    Meanwhile,
    Model,
    Seen,
)
from vmm_client import Connection, Ram, Session
from vmm_client.errors import Refused
from vmm_client.exits import Exit

PATIENCE: Final = 20.0
THREADS: Final = 3
HISTORY: Final = 12
PAGE: Final = 4096
ACTIVITY_HALTED: Final = 1

INJECTIONS: Final = {
    InjectType.INTERRUPT: ("interrupts", vcpu_pb2.INJECTION_TYPE_INTERRUPT, guest.INTERRUPT),
    InjectType.NMI: ("nmi", vcpu_pb2.INJECTION_TYPE_NMI, guest.NMI),
    InjectType.EXCEPTION: ("exceptions", vcpu_pb2.INJECTION_TYPE_EXCEPTION, guest.UNDEFINED),
}


class Driver:
    """Plays episodes on one engine over one connection, until it is closed; a context manager.

    `figures` counts the exits by reason, and what was asked.
    """

    def __init__(
        self, connection: Connection, engine: str, seed: int, *, stream: bool = False
    ) -> None:
        self.stream = stream
        self.figures: Counter[str] = Counter()
        self._connection = connection
        self._engine = engine
        self._random = random.Random(seed)
        self._program = guest.program()
        self._threads = ThreadPoolExecutor(THREADS, "asker")

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def episode(self, rounds: int) -> None:
        """One session with at least `rounds` runs. Raises DisagreementError."""
        with (
            self._connection.create_ram(guest.RAM_BYTES) as ram,
            self._connection.create_ram(PAGE) as device,
            self._connection.create_session(self._engine, "stress") as session,
        ):
            session.attach(ram, gpa=0)
            guest.load(session, self._program)
            episode = _Episode(self, session, device)
            for _ in range(rounds):
                episode.round()
            episode.end()
            self.figures["rounds"] += rounds
            self.figures["episodes"] += 1

    def chance(self, probability: float) -> bool:
        """True in `probability` of the cases."""
        return self._random.random() < probability

    @property
    def random(self) -> random.Random:
        """What decides."""
        return self._random

    @property
    def program(self) -> guest.Program:
        """The guest."""
        return self._program

    @property
    def connection(self) -> Connection:
        """Whose sessions they are."""
        return self._connection

    def elsewhere(self, action: Callable[[], None]) -> Future[None]:
        """Do it in another thread, somewhat later."""
        turns = self._random.choice((0, 0, 100, 1000, 5000))

        def late() -> None:
            for _ in range(turns):
                pass
            action()

        return self._threads.submit(late)


class _Episode:
    """One session and its model."""

    def __init__(self, driver: Driver, session: Session, device: Ram) -> None:
        self._driver = driver
        self._random = driver.random
        self._rpc, self._stub = driver.connection.rpc.call, driver.connection.vm_sessions
        self._session, self._device = session, device
        self._features = frozenset(session.capabilities.features)
        self._stream = driver.stream
        self._vcpu = session.create_vcpu(stream=self._stream)
        self._model = Model(driver.program.halt)
        self._lock = threading.Lock()
        self._paused = 0  # the last number of a pause by page
        self._history: deque[str] = deque(maxlen=HISTORY)
        self._written = False  # memory was written that the engine learns of by the page only
        self._begin()

    def round(self) -> None:
        """Ask, answer, run, wait, compare."""
        self._ask_while_stopped()
        answer = self._answer()
        meanwhile = Meanwhile()
        self._model.run(answer)
        calls = self._ask_while_running(answer, meanwhile)
        only_here = self._stream or answer.unusable or self._written
        by_rpc = not only_here and self._driver.chance(0.2)
        self._note(f"{'rpc' if by_rpc else 'page'} {answer}")
        exit_ = self._run_by_rpc(answer) if by_rpc else self._run_by_page(answer)
        for call in calls:
            call.result(PATIENCE)
        if exit_ is None:
            raise self._wrong("no exit")
        self._compare(exit_, meanwhile, usable=not answer.unusable)

    def end(self) -> None:
        """Close the session, in whatever state its vCPU is in, from another thread."""
        counts = self._model.counts
        for event in ("commands", "interrupts", "nmis", "exceptions"):
            self._driver.figures[event] += counts[event]
        if self._driver.chance(0.5):
            self._vcpu.run()
        self._driver.elsewhere(self._session.close).result(PATIENCE)

    def _begin(self) -> None:
        if self._driver.chance(0.3):  # waits for the second run: the first gives STARTUP
            self._pause_by_page_while_stopped()
        vcpu = self._vcpu
        vcpu.want("activity", "rbx")
        vcpu.run()
        exit_ = vcpu.wait(PATIENCE)
        if exit_ is None or exit_.reason is not Reason.STARTUP:
            raise self._wrong(f"{exit_} instead of STARTUP")

    # What is asked of a stopped vCPU.

    def _ask_while_stopped(self) -> None:
        choices: list[Callable[[], None]] = [
            self._pause_by_page_while_stopped,
            self._pause_by_rpc_while_stopped,
            self._window_while_stopped,
            self._read_state,
            self._write_state,
        ]
        if self._model.exact and self._model.due == "command" and self._model.at is Reason.PORT:
            choices += [self._move_device, self._write_device, self._write_code]
        for _ in range(self._random.choice((0, 0, 0, 1, 1, 2))):
            self._random.choice(choices)()

    def _pause_by_page_while_stopped(self) -> None:
        self._paused = self._numbered(self._vcpu.pause())
        self._model.pauses.ask(self._paused or None)
        self._note("pause")

    def _pause_by_rpc_while_stopped(self) -> None:
        self._rpc_pause()
        self._model.pauses.ask()
        self._note("pause by RPC")

    def _window_while_stopped(self) -> None:
        self._random.choice((self._page_window, self._rpc_window))()
        self._model.windows.ask()
        self._note("window")

    def _read_state(self) -> None:
        request = vm_session_pb2.GetVcpuStateRequest(vcpu=self._vcpu.name, wanted=["rbx"])
        if self._model.at not in BETWEEN | {Reason.HLT, Reason.STARTUP}:
            self._must_refuse(
                "MID_INSTRUCTION", lambda: self._rpc(self._stub.GetVcpuState, request)
            )
            return
        if self._model.at is Reason.STARTUP:
            return  # rbx is charged, and not there yet
        read = self._rpc(self._stub.GetVcpuState, request).state.rbx
        if read != self._model.rbx or self._vcpu.fetch("rbx").rbx != self._model.rbx:
            raise self._wrong(f"rbx is {read:#x}, {self._model.rbx:#x} was written")

    def _write_state(self) -> None:
        value = self._random.getrandbits(32)
        state = vcpu_pb2.VcpuState(rbx=value)
        request = vm_session_pb2.UpdateVcpuStateRequest(vcpu=self._vcpu.name, state=state)
        if self._model.at not in BETWEEN | {Reason.HLT}:
            return
        if self._model.storing and not self._model.exact:
            return  # the guest stores the old one or the new one
        self._rpc(self._stub.UpdateVcpuState, request)
        self._model.charge(value)
        self._note(f"rbx {value:#x} by RPC")

    def _move_device(self) -> None:
        if self._model.attached:
            self._session.detach(guest.DEVICE, PAGE)
        else:
            self._session.attach(self._device, gpa=guest.DEVICE)
        self._model.attached = not self._model.attached
        self._driver.figures["attach or detach"] += 1
        self._note(f"device attached: {self._model.attached}")

    def _write_device(self) -> None:
        value = self._random.getrandbits(32)
        self._device.write(guest.DEVICE_OFFSET, value.to_bytes(4, "little"))
        self._model.device = value
        self._written = self._written or self._model.attached

    def _write_code(self) -> None:
        value = self._random.getrandbits(32)
        self._session.memory.write(guest.CODE_AT, value.to_bytes(4, "little"))
        self._model.code = {value}
        self._written = True
        self._driver.figures["code written"] += 1
        self._note(f"code {value:#x}")

    # The reply.

    def _answer(self) -> Answer:
        model, chance = self._model, self._driver.chance
        if chance(0.03):
            return Answer(unusable=True)
        value = self._random.getrandbits(32)
        if model.due == "command" and model.at is Reason.PORT:
            value = self._random.choice(list(Command))
            if value == Command.SPIN:
                self._session.memory.write(guest.GO, b"\1")
                self._written = True
        if model.due == "string":
            return Answer(value=value)
        storing = model.storing and not model.exact
        return Answer(
            value=value,
            inject=self._injection(),
            complete=chance(0.1),
            withdraw=chance(0.05),
            wake=model.at is Reason.HLT and chance(0.4),
            rbx=self._random.getrandbits(32) if chance(0.2) and not storing else None,
        )

    def _injection(self) -> InjectType | None:
        kinds = [kind for kind, (feature, _, _) in INJECTIONS.items() if feature in self._features]
        if not kinds or self._model.at is Reason.STARTUP or not self._driver.chance(0.25):
            return None
        kind = self._random.choice(kinds)
        if kind is not InjectType.INTERRUPT and self._model.undelivered:
            return None  # one that waits may take the other in
        return kind

    def _run_by_page(self, answer: Answer) -> Exit | None:
        vcpu, exit_ = self._vcpu, self._vcpu.exit
        if answer.unusable:
            vcpu.reply.set_flag(ReplyFlag.FAULT)  # no MSR is asked for
        if self._model.at is Reason.STARTUP:
            vcpu.registers.update(guest.ENTRY)
        if exit_.is_read:
            exit_.reply_data(answer.value.to_bytes(4, "little") * 2)
        if answer.inject is not None:
            vcpu.reply.inject(answer.inject, INJECTIONS[answer.inject][2])
        if answer.complete:
            exit_.complete()
        if answer.withdraw:
            vcpu.withdraw_window()
        if answer.wake:
            vcpu.registers.rip = self._driver.program.halt + 1
        if answer.rbx is not None:
            vcpu.registers.rbx = answer.rbx
        self._written = self._written and answer.unusable
        self._driver.elsewhere(vcpu.run).result(PATIENCE)
        return vcpu.wait(PATIENCE)

    def _run_by_rpc(self, answer: Answer) -> Exit | None:
        vcpu = self._vcpu
        reply = vcpu_pb2.Reply(
            sequence=vcpu.exit.sequence,
            data=answer.value.to_bytes(4, "little") * 2,
            complete=answer.complete,
            withdraw_window=answer.withdraw,
            wanted=["activity", "rbx"],
        )
        if answer.inject is not None:
            _, kind, vector = INJECTIONS[answer.inject]
            reply.injection.CopyFrom(vcpu_pb2.Injection(type=kind, vector=vector))
        if self._model.at is Reason.STARTUP:
            for name, value in guest.ENTRY.items():
                if isinstance(value, int):
                    setattr(reply.state, name, value)
                else:
                    getattr(reply.state, name).CopyFrom(vcpu_pb2.Segment(**value._asdict()))
        if answer.wake:
            reply.state.rip = self._driver.program.halt + 1
        if answer.rbx is not None:
            reply.state.rbx = answer.rbx
        waiter, seen = vcpu.awaited()
        request = vm_session_pb2.RunRequest(vcpu=vcpu.name, reply=reply)
        self._rpc(self._stub.Run, request)
        self._driver.figures["runs by RPC"] += 1
        return vcpu.poll() if wait_any((waiter,), (seen,), PATIENCE) >= 0 else None

    # What is asked while it runs.

    def _ask_while_running(self, answer: Answer, meanwhile: Meanwhile) -> list[Future[None]]:
        actions: list[Callable[[], None]] = []
        if self._driver.chance(0.3):
            actions = [
                self._random.choice(self._anytime(meanwhile))
                for _ in range(self._random.randrange(1, THREADS))
            ]
        if self._model.spinning and self._driver.chance(0.5):
            actions.append(lambda: self._release(meanwhile))
        elif self._model.silent and not (answer.unusable or answer.complete):
            actions.append(lambda: self._pause(meanwhile))
        return [self._driver.elsewhere(action) for action in actions]

    def _anytime(self, meanwhile: Meanwhile) -> list[Callable[[], None]]:
        def rpc_pause() -> None:
            self._rpc_pause()
            with self._lock:
                meanwhile.pauses += 1

        ask_window = self._random.choice((self._page_window, self._rpc_window))

        def window() -> None:
            ask_window()
            with self._lock:
                meanwhile.windows += 1

        return [
            lambda: self._pause(meanwhile),
            rpc_pause,
            window,
            self._look_by_rpc,
            self._stale_run,
            self._disturb,
        ]

    def _pause(self, meanwhile: Meanwhile) -> None:
        number = self._numbered(self._vcpu.pause())
        with self._lock:
            self._paused = max(self._paused, number)
            meanwhile.pauses += not number

    def _numbered(self, number: int) -> int:
        """The stream's numbers are core's, and count the pauses by RPC too: as if there were none."""
        return 0 if self._stream else number

    def _release(self, meanwhile: Meanwhile) -> None:
        self._session.memory.write(guest.GO, b"\0")
        meanwhile.released = True

    def _rpc_pause(self) -> None:
        self._rpc(self._stub.Pause, vm_session_pb2.PauseRequest(vcpu=self._vcpu.name))
        self._driver.figures["pauses by RPC"] += 1

    def _page_window(self) -> None:
        self._vcpu.request_window()

    def _rpc_window(self) -> None:
        request = vm_session_pb2.RequestWindowRequest(vcpu=self._vcpu.name)
        self._rpc(self._stub.RequestWindow, request)

    def _look_by_rpc(self) -> None:
        request = vm_session_pb2.GetVcpuStateRequest(vcpu=self._vcpu.name, wanted=["rip"])
        try:
            self._rpc(self._stub.GetVcpuState, request)
        except Refused as refused:
            if refused.reason not in ("NOT_STOPPED", "MID_INSTRUCTION"):
                raise

    def _stale_run(self) -> None:
        sequence = self._vcpu.exit.sequence - 1
        if sequence > 0:  # 0 would be any
            reply = vcpu_pb2.Reply(sequence=sequence)
            request = vm_session_pb2.RunRequest(vcpu=self._vcpu.name, reply=reply)
            self._must_refuse("NOT_STOPPED", lambda: self._rpc(self._stub.Run, request))

    def _disturb(self) -> None:
        """Memory changes where the guest never looks: every vCPU is held meanwhile."""
        self._session.attach(self._device, gpa=guest.BYSTANDER)
        self._session.detach(guest.BYSTANDER, PAGE)

    # Comparing.

    def _compare(self, exit_: Exit, meanwhile: Meanwhile, *, usable: bool) -> None:
        model = self._model
        meanwhile.paused = self._paused
        boundary = exit_.reason in BETWEEN
        seen = Seen(
            reason=exit_.reason,
            address=exit_.address,
            is_read=exit_.is_read,
            bytes=exit_.size * exit_.count,
            value=exit_.value,
            injection=exit_.injection,
            interruptible=exit_.interruptible,
            interrupt_flag=exit_.interrupts_enabled,
            ip=exit_.ip,
            pauses_acknowledged=self._numbered(self._vcpu.pauses_acknowledged),
            halted=boundary and self._vcpu.registers.activity == ACTIVITY_HALTED,
        )
        self._note(f"  {seen.reason.name} {seen.address:#x} {seen.injection.name} {meanwhile}")
        self._driver.figures[seen.reason.name] += 1
        try:
            model.exit(seen, meanwhile)
            if usable and model.exact:
                model.check(guest.tally(self._session))
        except DisagreementError as wrong:
            raise self._wrong(str(wrong)) from wrong
        if boundary and self._vcpu.registers.rbx != model.rbx:
            raise self._wrong(f"rbx is {self._vcpu.registers.rbx:#x}, not {model.rbx:#x}")

    def _must_refuse(self, reason: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Refused as refused:
            if refused.reason == reason:
                self._driver.figures["refused as it must be"] += 1
                return
            raise
        raise self._wrong(f"not refused as {reason}")

    def _note(self, line: str) -> None:
        self._history.append(line)

    def _wrong(self, what: str) -> DisagreementError:
        return DisagreementError("\n".join((what, "before:", *self._history)))
