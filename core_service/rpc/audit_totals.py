"""Sums for GetTotals, of the whole and by group. What takes long is done in turns or in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from vmsession.v1 import audit_pb2 as pb

from core_service.dataspaces import holder, uid_of
from core_service.refusal import invalid
from core_service.rpc import convert
from core_service.rpc.sight import sees, sees_all
from dataspace.errors import InvalidDataspace

if TYPE_CHECKING:
    from vmsession.v1.core_pb2 import Quota

    from core_service.client import Client
    from core_service.core import Core
    from core_service.dataspaces import Dataspace
    from dataspace.quota import Account

AT_ONCE: Final = 256  # dataspaces looked at before others have their turns

Named = Callable[["Dataspace"], Iterable[str]]


async def totals(
    core: Core, client: Client, group_by: int, extra_fds: Callable[[], int]
) -> pb.GetTotalsResponse:
    """What a client may see. Raises Refusal INVALID_ARGUMENT."""
    groups = await _groups(core, client, group_by)
    fds = await asyncio.to_thread(extra_fds) if sees_all(client) else 0
    return _whole(core, client, groups, fds)


def _whole(
    core: Core, client: Client, groups: list[pb.GroupTotal], fds: int
) -> pb.GetTotalsResponse:
    held_by = core.ledger.totals_by_holder()
    now = [sums for who, sums in held_by.items() if sees(client, uid_of(who))]
    return pb.GetTotalsResponse(
        live=sum(each.live + each.held for each in now),
        live_bytes=sum(each.live_bytes + each.held_bytes for each in now),
        held_bytes=sum(each.held_bytes for each in now),
        created=sum(n for uid, n in core.dataspaces.created.items() if sees(client, uid)),
        freed=sum(n for uid, n in core.dataspaces.freed.items() if sees(client, uid)),
        sessions=sum(1 for session in core.sessions.values() if sees(client, session.uid)),
        clients=sum(1 for each in core.clients if sees(client, each.identity.uid)),
        extra_fds=fds,
        groups=groups,
        revision=core.ledger.revision,
        **(_of_core(core) if sees_all(client) else {}),
    )


def _of_core(core: Core) -> dict[str, Any]:
    """What only those are told who see all."""
    return {
        "engine_processes": core.engines.processes,
        "ram": convert.ram_quota(core.users.root),
        "capabilities": convert.capability_quota(core.users.root),
    }


async def _groups(core: Core, client: Client, group_by: int) -> list[pb.GroupTotal]:
    clients = [each for each in core.clients if sees(client, each.identity.uid)]
    accounts: dict[str, list[Account]] = {}
    peaks: Mapping[str, int] = {}
    named: Named
    match group_by:
        case pb.GROUPING_UNSPECIFIED:
            return []
        case pb.GROUPING_CLIENT:
            named = _client_of
            for each in clients:  # those of another PID namespace are told apart by nothing
                accounts.setdefault(holder(each), []).append(each.account)
        case pb.GROUPING_UID:
            named = _uid_of
            uids = {each.identity.uid for each in clients}
            uids |= {each.uid for each in core.dataspaces.all.values() if sees(client, each.uid)}
            accounts = {str(uid): [core.users.account(uid)] for uid in sorted(uids)}
        case pb.GROUPING_SESSION:
            named = _sessions_of
            sessions = core.sessions.values()
            accounts = {each.name: [each.account] for each in sessions if sees(client, each.uid)}
        case pb.GROUPING_KIND:
            named = _kind_of
            peaks = core.ledger.peaks_by_kind() if sees_all(client) else {}
        case _:
            raise invalid("group_by", group_by, "one of Grouping")
    groups = {name: _group(name, of_it) for name, of_it in accounts.items()}
    groups |= {name: pb.GroupTotal(group=name, peak_bytes=peak) for name, peak in peaks.items()}
    await _sum_up(core, client, named, groups)
    return list(groups.values())


async def _sum_up(
    core: Core, client: Client, named: Named, groups: dict[str, pb.GroupTotal]
) -> None:
    seen = (each for each in list(core.dataspaces.all.values()) if sees(client, each.uid))
    for number, dataspace in enumerate(seen, 1):
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            committed = dataspace.memory.committed()
        except InvalidDataspace:
            continue  # freed meanwhile
        held = dataspace.size if core.dataspaces.is_held(dataspace) else 0
        for name in named(dataspace):
            group = groups.setdefault(name, pb.GroupTotal(group=name))
            group.live += 1
            group.live_bytes += dataspace.size
            group.committed_bytes += committed
            group.proportional_bytes += dataspace.memory.proportional()
            group.held_bytes += held


def _group(name: str, accounts: Iterable[Account]) -> pb.GroupTotal:
    group = pb.GroupTotal(group=name)
    for account in accounts:
        _add(group.ram, convert.ram_quota(account))
        _add(group.capabilities, convert.capability_quota(account))
    return group


def _add(total: Quota, quota: Quota) -> None:
    total.used += quota.used
    total.peak += quota.peak
    total.limit += quota.limit


def _client_of(dataspace: Dataspace) -> Iterable[str]:
    return (holder(dataspace.client),)


def _uid_of(dataspace: Dataspace) -> Iterable[str]:
    return (str(dataspace.uid),)


def _kind_of(dataspace: Dataspace) -> Iterable[str]:
    return (dataspace.kind,)


def _sessions_of(dataspace: Dataspace) -> Iterator[str]:
    """Those where it is attached, or the one whose vCPU it is the page of."""
    session, is_page, _ = dataspace.name.partition("/vcpus/")
    if is_page:
        yield session
    yield from (each.name for each in dataspace.sessions)
