"""`--engine auto`: the first engine that can run what is asked for, here."""

from __future__ import annotations

from enum import Enum
from typing import Final

from vmm_client.connection import Connection
from vmm_client.doctor.probes import (
    LONG_MODE,
    PROTECTED_MODE,
    REAL_MODE,
    STOCK_KERNEL,
    Probe,
    examine,
)
from vmm_client.errors import VmsessionError


class Need(Enum):
    """What a guest asks of an engine."""

    REAL_MODE = "16-bit code"
    PROTECTED_MODE = "32-bit code without paging"
    LONG_MODE = "64-bit code in ring 0"
    STOCK_KERNEL = "a stock 64-bit kernel"


PROBES: Final[dict[Need, tuple[Probe, ...]]] = {
    Need.REAL_MODE: (REAL_MODE,),
    Need.PROTECTED_MODE: (PROTECTED_MODE,),
    Need.LONG_MODE: (LONG_MODE,),
    Need.STOCK_KERNEL: STOCK_KERNEL,
}


class NoEngine(VmsessionError):  # noqa: N818 - see vmm_client.errors
    """No engine can run this here; `why` tells it for each engine that core knows."""

    def __init__(self, need: Need, why: dict[str, str]) -> None:
        told = "; ".join(f"{engine}: {reason}" for engine, reason in why.items())
        super().__init__(
            f"no engine here can run {need.value} ({told or 'core knows none'})",
            "`vmm doctor` tells more",
        )
        self.why = why


def select_engine(connection: Connection, need: Need) -> str:
    """The name of the first engine, best first, that passes the probes of `need`: tens of
    milliseconds.

    Raises NoEngine, and what `Connection.engines` raises.
    """
    why = {}
    for engine in connection.engines():
        if not engine.available:
            why[engine.name] = engine.unavailable_because
        elif reason := unfit(connection, engine.name, need):
            why[engine.name] = reason
        else:
            return engine.name
    raise NoEngine(need, why)


def unfit(connection: Connection, engine: str, need: Need) -> str:
    """What is wrong with an engine for this need; empty if nothing is. Stops at the first."""
    try:
        for finding in examine(connection, engine, PROBES[need]):
            if not finding.passed:
                return f"{finding.probe}: {finding.why}"
    except VmsessionError as error:
        return str(error)
    return ""
