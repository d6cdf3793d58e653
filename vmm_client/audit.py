"""The audit as a client reads it: who holds which memory, now and at any time before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from vmsession.v1 import audit_pb2 as pb
from vmsession.v1.audit_pb2_grpc import AuditServiceStub

from vmm_client.errors import Closed
from vmm_client.rpc import Rpc

PAGE_ENTRIES = 1000
VERIFY_SECONDS = 600.0  # a long log is hashed again

T = TypeVar("T")


class History(NamedTuple):
    """The life of an object, event by event; `compacted` tells that retention removed its beginning."""

    events: list[pb.Event]
    compacted: bool


class AuditReader:
    """What every connection can ask of the audit; see audit.proto. It shows what concerns this user's
    processes, and everything to core's own user and root. Any thread.

    All raise Refused and CoreUnavailable; a moment without a time zone is local time.
    """

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self._audit = AuditServiceStub(rpc.channel)

    def records(
        self,
        alive_only: bool = False,
        *,
        uid: int | None = None,
        session: str = "",
        kind: str = "",
        at: datetime | None = None,
    ) -> Iterator[pb.DataspaceRecord]:
        """The life of every dataspace, oldest first: of user `uid`, attached to `session` now, of a
        `kind` (`ram`, `rom`, `vcpu_page`, `share`), that lived `at` a moment. Raises ValueError for
        another kind.
        """
        request = pb.ListRecordsRequest(
            alive_only=alive_only,
            page_size=PAGE_ENTRIES,
            uid=uid,
            session=session,
            kind=_choice(pb.DataspaceKind.Value, "DATASPACE_KIND_", kind),
            at=_timestamp(at),
        )
        while True:
            page = self.rpc.call(self._audit.ListRecords, request)
            yield from page.records
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def events(  # noqa: PLR0913 - the filters
        self,
        after: int = 0,
        *,
        subject: str = "",
        uid: int | None = None,
        kinds: Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Iterator[pb.Event]:
        """Events with a revision beyond `after`, oldest first: of one object, of user `uid`'s
        processes, of some `kinds` (`created`, `freed` and the like), at or after `since` and before
        `until`.

        Refused with COMPACTED where retention removed what comes after `after`.
        """
        request = pb.ListEventsRequest(
            after_revision=after,
            page_size=PAGE_ENTRIES,
            subject=subject,
            uid=uid,
            kinds=kinds,
            since=_timestamp(since),
            until=_timestamp(until),
        )
        while True:
            page = self.rpc.call(self._audit.ListEvents, request)
            yield from page.events
            if not page.next_after_revision:
                return
            request.after_revision = page.next_after_revision

    def history(self, name: str) -> History:
        """All events of a dataspace, session, vCPU or client, also after its end."""
        answer = self.rpc.call(self._audit.GetHistory, pb.GetHistoryRequest(name=name))
        events = list(answer.events)
        if answer.truncated:
            events.extend(self.events(events[-1].revision, subject=name))
        return History(events, answer.compacted)

    def totals(self, group_by: str = "") -> pb.GetTotalsResponse:
        """What lives, what ever lived, and for core's own user what core holds; with `groups` by
        `client`, `uid`, `session` or `kind`. Raises ValueError for another grouping.
        """
        grouping = _choice(pb.Grouping.Value, "GROUPING_", group_by)
        return self.rpc.call(self._audit.GetTotals, pb.GetTotalsRequest(group_by=grouping))

    def verify(self, *, whole_chain: bool = False) -> pb.VerifyResponse:
        """Let core compare the ledger, the engines' mappings, the kernel, the accounts and the log's
        hashes: those that were added since the last time, or the `whole_chain`.

        Refused with DENIED for whoever does not see everything.
        """
        request = pb.VerifyRequest(whole_chain=whole_chain)
        return self.rpc.call(self._audit.Verify, request, VERIFY_SECONDS)

    def watch(self, after: int = 0) -> Generator[pb.WatchResponse, None, None]:
        """Events with a revision beyond `after` as they are recorded, without end; 0 begins with a
        snapshot of what lives. Closing the iterator ends the watch.

        Refused with COMPACTED as `events` is. A watcher that falls behind gets `lagged` and a snapshot.
        """
        try:
            call = self._audit.Watch(pb.WatchRequest(after_revision=after))
        except ValueError as error:  # what gRPC raises on a closed channel
            raise Closed("the connection") from error
        try:
            yield from call
        except grpc.RpcError as error:
            raise self.rpc.translated(error) from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]


def _choice(value: Callable[[str], T], prefix: str, name: str) -> T:
    return value(prefix + (name.upper() or "UNSPECIFIED"))


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment.astimezone())
    return timestamp
