"""From core's nouns to the messages of `vmsession.v1`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from vmsession.v1 import audit_pb2, core_pb2, dataspace_pb2, vm_session_pb2

from dataspace.record import Event, Record, Stamp, now
from dataspace.vcpu_page import Reason, names

if TYPE_CHECKING:
    from core_service.audit.fold import Life
    from core_service.client import Client
    from core_service.dataspaces import Dataspace
    from core_service.engine.protocol import Hello
    from core_service.identity import Identity
    from core_service.session import Session
    from core_service.shares import Share
    from core_service.vcpu import Vcpu
    from core_service.verify.verification import Verified
    from dataspace.attachments import Attachment
    from dataspace.quota import Account

STATES = {
    "alive": audit_pb2.DATASPACE_STATE_ALIVE,
    "held": audit_pb2.DATASPACE_STATE_HELD,
    "freed": audit_pb2.DATASPACE_STATE_FREED,
}
KINDS = {
    "ram": audit_pb2.DATASPACE_KIND_RAM,
    "rom": audit_pb2.DATASPACE_KIND_ROM,
    "vcpu_page": audit_pb2.DATASPACE_KIND_VCPU_PAGE,
    "share": audit_pb2.DATASPACE_KIND_SHARE,
}


def timestamp(wall_ns: int) -> Timestamp:
    """Nanoseconds since the epoch."""
    return Timestamp(seconds=wall_ns // 10**9, nanos=wall_ns % 10**9)


def identity(of: Identity) -> core_pb2.ClientIdentity:
    """A client's identity."""
    return core_pb2.ClientIdentity(uid=of.uid, gid=of.gid, pid=of.pid)


def ram_quota(account: Account) -> core_pb2.Quota:
    """The RAM side of an account."""
    return core_pb2.Quota(used=account.used.ram, peak=account.peak.ram, limit=account.limits.ram)


def capability_quota(account: Account) -> core_pb2.Quota:
    """The capability side of an account."""
    return core_pb2.Quota(used=account.used.caps, peak=account.peak.caps, limit=account.limits.caps)


def capabilities(hello: Hello) -> core_pb2.Capabilities:
    """What an engine said of itself."""
    return core_pb2.Capabilities(
        max_vcpus=hello.max_vcpus,
        physical_bits=hello.physical_bits,
        tsc_khz=hello.tsc_khz,
        registers=[*names(*hello.registers)],
        exit_reasons=[reason.name for reason in Reason if hello.exit_reasons >> reason & 1],
        features=hello.features,
    )


def session(of: Session) -> vm_session_pb2.Session:
    """A session."""
    return vm_session_pb2.Session(
        name=of.name,
        label=of.label,
        engine=of.engine.name,
        client=identity(of.client.identity),
        create_time=timestamp(of.created_ns),
        vcpus=len(of.vcpus),
        attachments=of.memory.count,
        attached_bytes=of.memory.bytes,
        ram=ram_quota(of.account),
        capabilities=capability_quota(of.account),
        engine_pid=of.engine.pid,
        priority=of.allotment.priority,
        affinity=sorted(of.allotment.cpus),
    )


def vcpu(of: Vcpu, run_time_ns: int | None = None) -> vm_session_pb2.Vcpu:
    """A vCPU, with the CPU time that it took where that is known."""
    return vm_session_pb2.Vcpu(
        name=of.name,
        index=of.index,
        transport=vm_session_pb2.TRANSPORT_PAGE if of.page else vm_session_pb2.TRANSPORT_STREAM,
        exits=of.exit_count,
        run_time_ns=run_time_ns,
    )


def attachment(of: Attachment) -> vm_session_pb2.Attachment:
    """An attachment."""
    return vm_session_pb2.Attachment(
        dataspace=of.dataspace,
        gpa=of.gpa,
        size=of.size,
        offset=of.offset,
        writable=of.writable,
        executable=of.executable,
    )


def dataspace(of: Dataspace, record: Record) -> dataspace_pb2.Dataspace:
    """A dataspace that is alive."""
    return dataspace_pb2.Dataspace(
        name=of.name,
        size=of.size,
        committed=of.memory.committed(),
        writable=of.memory.writable,
        create_time=timestamp(record.created.wall_ns),
        attachments=len(record.attachments),
        origin=record.origin,
    )


def share(of: Share, seen_by: Client) -> dataspace_pb2.Share:
    """An offer, as its owner or its receiver sees it."""
    owned = of.owner is seen_by
    return dataspace_pb2.Share(
        name=of.name,
        dataspace=of.dataspace.name if owned else "",
        owner=identity(of.owner.identity),
        receiver=core_pb2.ClientIdentity(uid=of.uid, pid=of.pid),
        offset=of.offset,
        size=of.size,
        writable=of.writable,
        accepted_as=of.accepted.name if of.accepted else "",
    )


def client(holder: str) -> core_pb2.ClientIdentity | None:
    """A client as the ledger names it; None for core itself."""
    if not holder:
        return None
    uid, gid, pid = (int(part) for part in holder.split(":"))
    return core_pb2.ClientIdentity(uid=uid, gid=gid, pid=pid)


def event(of: Event, digest: bytes) -> audit_pb2.Event:
    """An event on disk, with its hash."""
    return audit_pb2.Event(
        revision=of.revision,
        time=timestamp(of.wall_ns),
        monotonic_ns=of.monotonic_ns,
        boot_id=of.boot_id,
        kind=of.kind,
        subject=of.subject,
        actor=client(of.actor),
        label=of.label,
        cause=of.cause,
        detail=json.dumps(dict(of.detail), sort_keys=True, separators=(",", ":")),
        hash=digest,
    )


def past(of: Life) -> audit_pb2.DataspaceRecord:
    """The life of a dataspace as the log tells it."""
    ended = of.ended_wall_ns is not None
    return audit_pb2.DataspaceRecord(
        name=of.name,
        kind=KINDS[of.kind],
        size=of.size,
        holder=client(of.holder),
        state=STATES["freed" if ended else "held" if of.held_wall_ns else "alive"],
        create_time=timestamp(of.created_wall_ns),
        free_time=timestamp(of.ended_wall_ns) if of.ended_wall_ns is not None else None,
        lifetime_ns=_lifetime(of),
        cause=of.cause,
        mappings=of.mappings,
        handed_out=of.handed_out,
        origin=of.origin,
    )


def _lifetime(of: Life) -> int:
    """By the monotonic clock, which does not go on over a boot of the host."""
    if of.ended_monotonic_ns is None or of.ended_wall_ns is None:
        return max(0, now().wall_ns - of.created_wall_ns)
    if of.created_boot_id == of.ended_boot_id:
        return of.ended_monotonic_ns - of.created_monotonic_ns
    return max(0, of.ended_wall_ns - of.created_wall_ns)


def record(of: Record, committed: int, proportional: int) -> audit_pb2.DataspaceRecord:
    """The life of a dataspace, of which `committed` bytes are backed by memory, and `proportional` its
    share of what several have."""
    end: Stamp = of.freed or now()
    return audit_pb2.DataspaceRecord(
        name=of.name,
        kind=KINDS[of.kind],
        size=of.size,
        holder=client(of.holder),
        state=STATES[of.state],
        create_time=timestamp(of.created.wall_ns),
        free_time=timestamp(of.freed.wall_ns) if of.freed else None,
        lifetime_ns=end.monotonic_ns - of.created.monotonic_ns,
        cause=of.cause,
        attachments=[_mapping(session_name, mapped) for session_name, mapped in of.attachments],
        mappings=of.mappings,
        handed_out=of.hand_outs,
        origin=of.origin,
        holders=of.holders,
        committed=committed,
        proportional=proportional,
    )


def _mapping(session_name: str, mapped: Attachment) -> str:
    rights = "rw" if mapped.writable else "r"
    return f"{session_name} {mapped.gpa:#x}..{mapped.end - 1:#x} {rights}"


def verified(told: Verified) -> audit_pb2.VerifyResponse:
    """What a verification found."""
    return audit_pb2.VerifyResponse(
        discrepancies=[
            audit_pb2.Discrepancy(check=check, subject=subject, message=message)
            for check, subject, message in told.findings
        ],
        revision=told.revision,
        events_checked=told.events,
        mappings_checked=told.mappings,
        descriptors_checked=told.descriptors,
        accounts_checked=told.accounts,
    )
