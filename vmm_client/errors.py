"""The closed set of errors that the library raises.

Misuse of a method (an offset below zero, a vector beyond 255) is ValueError, KeyError or TypeError,
as in Python's own library; everything that can happen to a correct program is here.
"""
# The names say what happened; an "Error" suffix on each would say nothing more.
# ruff: noqa: N818

from __future__ import annotations

from collections.abc import Mapping


class VmsessionError(Exception):
    """Base of all errors. `hint` tells a person what to do next; it may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CoreUnavailable(VmsessionError):
    """There is no core to talk to at `path`, or it stopped talking; `why` in words."""

    def __init__(self, path: str, why: str, hint: str) -> None:
        super().__init__(f"no core at {path}: {why}", hint)
        self.path = path
        self.why = why


class IncompatibleCore(VmsessionError):
    """Core, or the engine behind a vCPU page, speaks another version of the interface."""

    def __init__(self, what: str, theirs: object, ours: object) -> None:
        super().__init__(
            f"{what} is {theirs}, this library speaks {ours}",
            "install the same version of vmsession on both sides",
        )


class Refused(VmsessionError):
    """Core refused a call, or failed to carry it out.

    `reason` is a name of ErrorReason without its prefix (`proto/vmsession/v1/errors.proto`), `code`
    the name of the gRPC code or empty where it came over the fd channel, `metadata` the numbers and
    names of ErrorInfo as strings.
    """

    def __init__(
        self, reason: str, message: str, metadata: Mapping[str, str] | None = None, code: str = ""
    ) -> None:
        super().__init__(f"{reason}: {message}" if message else reason, HINTS.get(reason, ""))
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.code = code


HINTS = {
    "UNSUPPORTED": "`vmm doctor` tells what each engine has",
    "OUT_OF_RAM": "free memory, or raise the RAM quota in core's policy",
    "OUT_OF_CAPS": "delete what is not used, or raise the capability quota in core's policy",
    "MEMORY_FAILURE": "the host is out of memory or file descriptors; try again later",
    "ENGINE_UNAVAILABLE": "`vmm doctor` tells which engines work here, and why others do not",
    "ENGINE_DIED": "core's log tells how the engine ended",
    "SHUTTING_DOWN": "try again with the next core",
    "INTERNAL": "a defect in core; its log tells more",
    "DENIED": "core's policy does not allow this",
    "COMPACTED": "begin later: retention removed what was before `oldest`",
}


class Unsupported(Refused):
    """The session's engine has no such feature, exit or register; the library saw that by itself."""

    def __init__(self, engine: str, what: str) -> None:
        super().__init__("UNSUPPORTED", f"engine {engine} has no {what}", {"engine": engine})
        self.engine = engine


class ReadOnly(Refused):
    """The memory can only be read: a ROM, sealed, or shared so; the library saw that by itself."""

    def __init__(self, dataspace: str) -> None:
        super().__init__("READ_ONLY", f"{dataspace} is read-only", {"name": dataspace})


class SessionEnded(VmsessionError):
    """A session came to an end that its VMM did not ask for; `why` in words."""

    def __init__(self, session: str, why: str) -> None:
        super().__init__(f"{session} ended: {why}", "core's log tells more")
        self.session = session
        self.why = why


class Closed(VmsessionError):
    """The object was closed by this program before."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is closed")


class Busy(VmsessionError):
    """Another thread, or another iterator, serves this vCPU."""

    def __init__(self, vcpu: str) -> None:
        super().__init__(
            f"{vcpu} is being served already", "one thread at a time; close the other iterator"
        )


class NotStopped(VmsessionError):
    """The vCPU runs: registers and replies belong to a stopped one."""

    def __init__(self, vcpu: str) -> None:
        super().__init__(f"{vcpu} runs", "pause() it and wait() for the exit")


class NotStarted(VmsessionError):
    """The vCPU never ran, so there is no exit to answer: its first run gives STARTUP."""

    def __init__(self, vcpu: str) -> None:
        super().__init__(f"{vcpu} never ran", "run() it and wait() for STARTUP")


class MidInstruction(VmsessionError):
    """The exit stands in the middle of an instruction, where registers cannot be delivered."""

    def __init__(self, vcpu: str) -> None:
        super().__init__(
            f"{vcpu} stands in the middle of an instruction",
            "answer with exit.complete(); the registers come with the exit COMPLETED",
        )


class NotValid(VmsessionError, KeyError):
    """The engine did not deliver this register with the present exit."""

    def __init__(self, register: str) -> None:
        super().__init__(
            f"register {register} is not valid at this exit",
            "ask for it: exits(wanted=...), vcpu.want(...) or vcpu.fetch(...)",
        )
        self.register = register

    __str__ = Exception.__str__  # KeyError's own would show the message quoted


class UnknownExit(VmsessionError):
    """The engine published an exit that the contract does not have."""

    def __init__(self, vcpu: str, reason: int, size: int, count: int) -> None:
        super().__init__(
            f"{vcpu}: no exit has reason {reason} with {count} accesses of {size} bytes"
        )
        self.reason = reason


class NotAttached(VmsessionError):
    """Nothing is attached at a guest-physical address, which is within a range asked for."""

    def __init__(self, gpa: int, size: int, at: int) -> None:
        super().__init__(f"nothing is attached at {at:#x}, within {size:#x} bytes at {gpa:#x}")
        self.gpa = gpa
        self.size = size
        self.at = at


class BadMessage(VmsessionError):
    """Core sent an exit that no engine's half of a page can hold."""

    def __init__(self, vcpu: str, why: str) -> None:
        super().__init__(f"{vcpu}: core sent an exit that cannot be: {why}")


class BadFd(VmsessionError):
    """Core handed out a file descriptor that is not what was asked for."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"the file descriptor for {what} cannot be used: {why}")
