"""The ledger against core's objects: dataspaces, their owners, attachments, sessions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from core_service.dataspaces import holder
from core_service.verify.look import AT_ONCE
from dataspace.errors import UnknownDataspace
from dataspace.record import State

if TYPE_CHECKING:
    from core_service.core import Core
    from core_service.dataspaces import Dataspace
    from core_service.session import Session
    from core_service.verify.look import Look
    from dataspace.attachments import Attachment
    from dataspace.record import Record


async def check_ledger(core: Core, look: Look) -> None:
    """Compare each record with the object that it is of, and see that nothing has none."""
    living = core.ledger.created_after(0, gone=False)
    for number, (_, record) in enumerate(living, 1):
        dataspace = core.dataspaces.all.get(record.name)
        # The records to look at were chosen at first: one may be of what is gone meanwhile.
        if dataspace is not None:
            _compare(core, record, dataspace, look)
        elif record.state is not State.FREED:
            look.wrong("ledger", record.name, f"is {record.state} on record, and core has it not")
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
    for number, dataspace in enumerate(list(core.dataspaces.all.values()), 1):
        _must_be_on_record(core, dataspace, look)
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
    for session in list(core.sessions.values()):
        _check_session(core, session, look)


def _compare(core: Core, record: Record, dataspace: Dataspace, look: Look) -> None:
    held = core.dataspaces.is_held(dataspace)
    recorded = (record.state, record.kind, record.size, record.holder)
    there = (
        State.HELD if held else State.ALIVE,
        dataspace.kind,
        dataspace.size,
        holder(dataspace.client),
    )
    for what, written, found in zip(
        ("state", "kind", "size", "holder"), recorded, there, strict=True
    ):
        if written != found:
            look.wrong("ledger", record.name, f"has {what} {written} on record, and is {found}")
    if not held and not _owned(core, dataspace):
        look.wrong("ledger", record.name, "is alive, and nobody owns it")
    _compare_attachments(record, dataspace, look)


def _owned(core: Core, dataspace: Dataspace) -> bool:
    if dataspace.kind != "vcpu_page":
        return dataspace.client.dataspaces.get(dataspace.name) is dataspace
    session = core.sessions.get(dataspace.name.partition("/vcpus/")[0])
    return session is not None and any(vcpu.page is dataspace for vcpu in session.vcpus.values())


def _compare_attachments(record: Record, dataspace: Dataspace, look: Look) -> None:
    recorded = set(record.attachments)
    there = {
        (session.name, attachment)
        for session in dataspace.sessions
        for attachment in session.memory.attachments_of(dataspace)
    }
    for session, attachment in recorded - there:
        told = f"{told_attachment(attachment)} in {session}"
        look.wrong("ledger", record.name, f"is attached at {told} on record, and is not")
    for session, attachment in there - recorded:
        told = f"{told_attachment(attachment)} in {session}"
        look.wrong("ledger", record.name, f"is attached at {told}, which is not on record")


def _must_be_on_record(core: Core, dataspace: Dataspace, look: Look) -> None:
    name = dataspace.name
    if name not in core.dataspaces.all:
        return
    try:
        state = core.ledger.record(name).state
    except UnknownDataspace:
        look.wrong("ledger", name, "is there, and not on record")
        return
    if state is State.FREED:
        look.wrong("ledger", name, "is freed on record, and core has it")


def _check_session(core: Core, session: Session, look: Look) -> None:
    if session.closing:
        return
    if session.client.sessions.get(session.name) is not session:
        look.wrong("ledger", session.name, "is open, and its client has it not")
    for attachment in session.memory.attachments():
        dataspace = core.dataspaces.all.get(attachment.dataspace)
        if dataspace is None or session not in dataspace.sessions:
            told = f"{attachment.dataspace} at {told_attachment(attachment)}"
            look.wrong("ledger", session.name, f"has {told}, and that knows nothing of it")


def told_attachment(attachment: Attachment) -> str:
    """An attachment for people: its guest-physical range, rights, and where in the dataspace."""
    rights = "rw" if attachment.writable else "ro"
    return f"{attachment.gpa:#x}..{attachment.end - 1:#x} {rights} from {attachment.offset:#x}"
