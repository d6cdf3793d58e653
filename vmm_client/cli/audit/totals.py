"""`vmm audit totals`."""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator
from typing import Annotated, Final, Literal

from cyclopts import Parameter
from vmsession.v1.audit_pb2 import GetTotalsResponse, GroupTotal
from vmsession.v1.core_pb2 import Quota

from vmm_client.cli.output import Row, show, size
from vmm_client.connection import connect

SUMS: Final = (
    *("live", "live_bytes", "held_bytes", "created", "freed"),
    *("sessions", "clients", "engine_processes", "extra_fds", "revision"),
)
GROUPED: Final = (
    *("live", "memory", "divided", "committed", "held", "peak"),
    *("ram_quota", "capabilities"),
)


def totals(
    *,
    by: Literal["client", "uid", "session", "kind"] | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    by
        Sums of parts instead of the whole.
    json
        Print one JSON object instead, or with `--by` a JSON list.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        sums = core.totals(by or "")
    if by:
        show((_group(by, group) for group in sums.groups), (by, *GROUPED), as_json=json)
    elif json:
        print(encoder.dumps(_whole(sums), indent=2))
    else:
        show([*_lines(sums)], ("what", "total"), as_json=False)


def _whole(sums: GetTotalsResponse) -> Row:
    """Exact, by name; without the quota of core where that is not told."""
    told: Row = {name: getattr(sums, name) for name in SUMS}
    if sums.HasField("ram"):
        told |= _quota("ram", sums.ram, there=True)
        told |= _quota("capabilities", sums.capabilities, there=True)
    return told


def _lines(sums: GetTotalsResponse) -> Iterator[Row]:
    """For people."""
    for name in SUMS:
        yield _sum(sums, name)
    if sums.HasField("ram"):
        yield {"what": "ram_quota", "total": _ram(sums.ram)}
        yield {"what": "peak", "total": size(sums.ram.peak)}
        yield {"what": "capabilities", "total": _of(sums.capabilities)}


def _sum(sums: GetTotalsResponse, name: str) -> Row:
    value = getattr(sums, name)
    return {"what": name, "total": size(value) if name.endswith("bytes") else value}


def _group(by: str, group: GroupTotal) -> Row:
    has_ram = group.HasField("ram")
    peak = group.ram.peak if has_ram else group.peak_bytes
    return {
        by: group.group,
        "live": group.live,
        "memory": size(group.live_bytes),
        "live_bytes": group.live_bytes,
        "divided": size(group.proportional_bytes),
        "proportional_bytes": group.proportional_bytes,
        "committed": size(group.committed_bytes),
        "committed_bytes": group.committed_bytes,
        "held": size(group.held_bytes),
        "held_bytes": group.held_bytes,
        "peak": size(peak) if has_ram or peak else "",
        "peak_bytes": peak if has_ram or peak else None,
        "ram_quota": _ram(group.ram) if has_ram else "",
        **_quota("ram", group.ram, there=has_ram),
        "capabilities": _of(group.capabilities) if group.HasField("capabilities") else "",
        **_quota("capabilities", group.capabilities, there=group.HasField("capabilities")),
    }


def _ram(quota: Quota) -> str:
    return f"{size(quota.used)} of {size(quota.limit)}"


def _of(quota: Quota) -> str:
    return f"{quota.used} of {quota.limit}"


def _quota(name: str, quota: Quota, *, there: bool) -> Row:
    parts = ("used", "peak", "limit")
    return {f"{name}_{part}": getattr(quota, part) if there else None for part in parts}
