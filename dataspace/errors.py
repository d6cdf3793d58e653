"""The closed set of errors that `dataspace` answers with.

Each class is one reason. `numbers` holds what the answer is about (the value, the limit), so that
whoever passes it on over RPC need not parse a message.
"""
# The names are those of the interface (OUT_OF_RAM, REGION_CONFLICT, ...); an "Error" suffix on
# each would say nothing more.
# ruff: noqa: N818

import errno as errno_names
import os
from typing import ClassVar


class DataspaceError(Exception):
    """Base of all refusals; `reason` names the class of refusal in SCREAMING_SNAKE."""

    reason: ClassVar[str]

    def __init__(self, message: str, **numbers: int | str) -> None:
        super().__init__(message)
        self.numbers = numbers


class OutOfRam(DataspaceError):
    """An account's RAM quota does not cover a charge; all numbers in bytes."""

    reason = "OUT_OF_RAM"

    def __init__(self, asked: int, used: int, limit: int, account: str = "") -> None:
        super().__init__(
            f"{asked} bytes asked of account {account!r}, which uses {used} of {limit}",
            asked=asked,
            used=used,
            limit=limit,
            account=account,
        )


class OutOfCaps(DataspaceError):
    """An account's capability quota does not cover a charge; all numbers in capabilities."""

    reason = "OUT_OF_CAPS"

    def __init__(self, asked: int, used: int, limit: int, account: str = "") -> None:
        super().__init__(
            f"{asked} capabilities asked of account {account!r}, which uses {used} of {limit}",
            asked=asked,
            used=used,
            limit=limit,
            account=account,
        )


class RegionConflict(DataspaceError):
    """A guest-physical range is taken; the numbers name the lowest attachment in the way."""

    reason = "REGION_CONFLICT"

    def __init__(self, gpa: int, size: int, conflict_gpa: int, conflict_size: int) -> None:
        super().__init__(
            f"{size:#x} bytes at {gpa:#x} overlap {conflict_size:#x} bytes at {conflict_gpa:#x}",
            gpa=gpa,
            size=size,
            conflict_gpa=conflict_gpa,
            conflict_size=conflict_size,
        )


class AddressMapFull(DataspaceError):
    """An address map holds as many attachments as it may; more quota does not help."""

    reason = "ADDRESS_MAP_FULL"

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(f"{used} of {limit} attachments are in use", used=used, limit=limit)


class InvalidDataspace(DataspaceError):
    """A dataspace, or the part of it asked for, is not one that can be had.

    `numbers["why"]` is the constraint that does not hold; the other numbers are the values.
    """

    reason = "INVALID_DATASPACE"

    def __init__(self, why: str, **values: int | str) -> None:
        super().__init__(_told(why, values), why=why, **values)


class InvalidRange(DataspaceError):
    """A guest-physical range is unaligned, empty, beyond the physical width, or not attached.

    `numbers["why"]` is the constraint that does not hold; the other numbers are the values.
    """

    reason = "INVALID_RANGE"

    def __init__(self, why: str, **values: int | str) -> None:
        super().__init__(_told(why, values), why=why, **values)


class OutOfRange(DataspaceError):
    """A read or write reaches beyond the memory; `limit` is its size in bytes."""

    reason = "OUT_OF_RANGE"

    def __init__(self, offset: int, size: int, limit: int) -> None:
        super().__init__(
            f"{size} bytes at offset {offset} of {limit}", offset=offset, size=size, limit=limit
        )


class NotWritable(DataspaceError):
    """Write access to a memory that is sealed read-only."""

    reason = "READ_ONLY"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is read-only", name=name)


class StillWritable(DataspaceError):
    """A memory cannot be frozen while somebody may write it; `numbers` name who."""

    reason = "STILL_WRITABLE"

    def __init__(self, name: str, why: str, **who: str) -> None:
        super().__init__(f"{name} is still writable: {why}", name=name, why=why, **who)


class MemoryFailure(DataspaceError):
    """The kernel refused: ENOMEM, ENOSPC, EMFILE, ENFILE, ... as `errno`."""

    reason = "MEMORY_FAILURE"

    def __init__(self, errno: int) -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        super().__init__(f"{name}: {os.strerror(errno)}", errno=errno, name=name)


class UnknownDataspace(DataspaceError):
    """The ledger has no record of that name: it never was, or has left the history."""

    reason = "NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"no dataspace {name}", name=name)


class DuplicateDataspace(DataspaceError):
    """The ledger has a record of that name already; names are never reused."""

    reason = "ALREADY_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f"dataspace {name} is known already", name=name)


class InvalidTransition(DataspaceError):
    """A dataspace's state does not admit an event; `why` says what stands against it."""

    reason = "INVALID_STATE"

    def __init__(self, name: str, event: str, why: str) -> None:
        super().__init__(f"{name} cannot be {event}: {why}", name=name, event=event, why=why)


class AccountingError(AssertionError):
    """The accounts were misused: a defect of the program, not something a client did."""


def _told(why: str, values: dict[str, int | str]) -> str:
    return ", ".join([why, *(f"{name}={value}" for name, value in values.items())])
