"""Refusals: every error that a client can see, as a reason with its gRPC code and numbers.

The reasons and their codes are those of `vmsession/v1/errors.proto`.
"""

from __future__ import annotations

from typing import Final

import grpc

DOMAIN: Final = "vmsession.v1"

CODES: Final = {
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
    "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "OUT_OF_RAM": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "OUT_OF_CAPS": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "REGION_CONFLICT": grpc.StatusCode.FAILED_PRECONDITION,
    "INVALID_DATASPACE": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_RANGE": grpc.StatusCode.INVALID_ARGUMENT,
    "OUT_OF_RANGE": grpc.StatusCode.OUT_OF_RANGE,
    "READ_ONLY": grpc.StatusCode.PERMISSION_DENIED,
    "MEMORY_FAILURE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "ENGINE_UNAVAILABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "ENGINE_DIED": grpc.StatusCode.ABORTED,
    "ENGINE_LIMIT": grpc.StatusCode.FAILED_PRECONDITION,
    "NOT_STOPPED": grpc.StatusCode.FAILED_PRECONDITION,
    "MID_INSTRUCTION": grpc.StatusCode.FAILED_PRECONDITION,
    "ALREADY_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "REQUEST_ID_REUSED": grpc.StatusCode.INVALID_ARGUMENT,
    "WRONG_TRANSPORT": grpc.StatusCode.FAILED_PRECONDITION,
    "SHUTTING_DOWN": grpc.StatusCode.UNAVAILABLE,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "DENIED": grpc.StatusCode.PERMISSION_DENIED,
    "ADDRESS_MAP_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "UNSUPPORTED": grpc.StatusCode.FAILED_PRECONDITION,
    "ALREADY_STARTED": grpc.StatusCode.FAILED_PRECONDITION,
    "TAKEN_OVER": grpc.StatusCode.ABORTED,
    "STILL_WRITABLE": grpc.StatusCode.FAILED_PRECONDITION,
    "COMPACTED": grpc.StatusCode.OUT_OF_RANGE,
    "AUDIT_FAILURE": grpc.StatusCode.UNAVAILABLE,
}


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a failure of core
    """The answer to a call that core does not carry out. `numbers` go into ErrorInfo.metadata."""

    def __init__(self, reason: str, message: str, **numbers: int | str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = CODES[reason]
        self.numbers = numbers


def shortened(text: str) -> str:
    """What a client sent, as it is told back: a status has room for a few kilobytes."""
    return text if len(text) <= 80 else text[:77] + "..."


def invalid(field: str, value: object, limit: str) -> Refusal:
    """A field that is malformed or out of range: names it, its value, and what is allowed."""
    told = shortened(str(value))
    return Refusal(
        "INVALID_ARGUMENT",
        f"{field} is {told!r}: must be {limit}",
        field=field,
        value=told,
        limit=limit,
    )


def not_found(name: str) -> Refusal:
    """No such object, or another client's: a caller cannot tell which."""
    told = shortened(name)
    return Refusal("NOT_FOUND", f"{told!r} does not exist, or is not yours", name=told)
