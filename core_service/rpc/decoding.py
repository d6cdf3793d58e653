"""What comes over the wire in the place of a request and is none: refused like any other bad request.

gRPC would tell the caller of an unexpected exception, and a servicer of a defect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from core_service.refusal import Refusal, shortened


class Undecodable(NamedTuple):
    """Stands for a request until somebody can refuse it."""

    why: str


def tolerant(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """A decoder that never raises: it returns an Undecodable."""
    assert decode, "all services here take messages"

    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError as error:
            return Undecodable(str(error))

    return decoded


def must_be_decoded(request: Any) -> Any:
    """The request. Raises Refusal INVALID_ARGUMENT for an Undecodable."""
    if isinstance(request, Undecodable):
        raise Refusal("INVALID_ARGUMENT", f"this is no such request: {shortened(request.why)}")
    return request


class Decoded:
    """A stream of requests. It raises Refusal at one that is none."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = aiter(requests)

    def __aiter__(self) -> Decoded:
        return self

    async def __anext__(self) -> Any:
        return must_be_decoded(await anext(self._requests))
