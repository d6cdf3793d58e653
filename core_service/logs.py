"""Where core's log goes: to the journal with fields, or as lines to stderr.

What a line is about stands in the context of the task that writes it (`about`): calls, and what they
start, tell their client and session without being told to.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog
from structlog.contextvars import bind_contextvars, merge_contextvars

from core_service import journal

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

    from core_service.client import Client

IDENTIFIER: Final = "vmcore"
PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
NOT_FIELDS: Final = {"event", "level", "exception"}


def about(client: Client | None = None, **objects: str) -> None:
    """What the rest of this task, and tasks that it starts, write lines about."""
    if client:
        bind_contextvars(client=client.name, uid=client.identity.uid)
    bind_contextvars(**objects)


def configure(level: str, environment: Mapping[str, str]) -> None:
    """From now on log what is at least of this level."""
    to_journal = journal.is_stderr(environment)
    logger = (
        _Entries(journal.Journal(journal.SOCKET)) if to_journal else structlog.PrintLogger(_STDERR)
    )
    first: list[Processor] = [
        merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*first, entry] if to_journal else [*first, *_LINES],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=lambda *_: logger,
    )


def entry(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A structlog processor, the last: the fields of an entry in the journal, by name. MESSAGE tells all
    of them, as that is what an operator sees first."""
    fields = {
        f"VMSESSION_{name.upper()}": str(value)
        for name, value in event.items()
        if name not in NOT_FIELDS
    }
    return {
        "MESSAGE": _message(event),
        "PRIORITY": str(PRIORITIES[event["level"]]),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "VMSESSION_EVENT": str(event["event"]),
        **fields,
    }


def _message(event: MutableMapping[str, Any]) -> str:
    told = " ".join(f"{name}={value!r}" for name, value in event.items() if name not in NOT_FIELDS)
    line = f"{event['event']} {told}".rstrip()
    return f"{line}\n{event['exception']}" if "exception" in event else line


class _Entries:
    """A logger for structlog, of entries in the journal."""

    def __init__(self, to: journal.Journal) -> None:
        self._to = to

    def _send(self, **fields: str) -> None:
        self._to.send(fields)

    debug = info = warning = error = critical = _send


_LINES: Final[list[Processor]] = [
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
]


class _Stderr:
    """Standard error, of which nothing depends: a log that is full or gone must not keep core from
    freeing what its clients leave. Past Python's buffer, which would fail once more at exit."""

    @staticmethod
    def write(text: str) -> None:
        with suppress(OSError):
            os.write(2, text.encode())

    @staticmethod
    def flush() -> None:
        """Nothing is kept."""


_STDERR: Final = cast("TextIO", _Stderr())
