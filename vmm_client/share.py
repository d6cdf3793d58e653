"""An offer of shared memory, as its owner or its receiver sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsession.v1.core_pb2 import ClientIdentity
from vmsession.v1.dataspace_pb2 import RevokeShareRequest
from vmsession.v1.dataspace_pb2 import Share as ShareRecord

from vmm_client.errors import Refused

if TYPE_CHECKING:
    from vmm_client.connection import Connection


class Share:
    """`size` bytes from `offset` of a dataspace, offered by `owner` to `receiver`: a user, and one
    process of his if its `pid` is not 0. `name` is what the receiver accepts; `accepted_as` is what it
    had made of it when this was read; `dataspace` is empty for all but the owner."""

    def __init__(self, connection: Connection, record: ShareRecord) -> None:
        self.name = record.name
        self.dataspace = record.dataspace
        self.owner: ClientIdentity = record.owner
        self.receiver: ClientIdentity = record.receiver
        self.offset = record.offset
        self.size = record.size
        self.writable = record.writable
        self.accepted_as = record.accepted_as
        self.held = False
        self._connection = connection

    def revoke(self) -> None:
        """Take it back: it is unmapped from every guest of the receiver when this returns. Again, or
        when the memory was freed: nothing.

        `held` then tells whether the receiver still holds the memory itself, by an fd or a mapping,
        which nobody can take from it; it stays charged for it. Raises CoreUnavailable.
        """
        request = RevokeShareRequest(share=self.name)
        try:
            answer = self._connection.rpc.call(self._connection.dataspaces.RevokeShare, request)
        except Refused as refusal:
            if refusal.reason != "NOT_FOUND":
                raise
            return
        self.held = answer.held
