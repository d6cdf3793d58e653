"""Guest-physical memory as one session's guest sees it: what is attached, where it is attached."""

from __future__ import annotations

import sys
import threading

from dataspace.address_map import AddressMap, Attachment
from vmm_client.boot.entry import HIGH_RAM
from vmm_client.errors import NotAttached
from vmm_client.ram import Ram
from vmm_client.written import WrittenLog

PHYSICAL_LIMIT = 1 << 52  # of the architecture; core checks against the engine's own


class GuestMemory:
    """Reads and writes by guest-physical address. A mirror of core's address map: the session
    records here what core has answered. Any thread."""

    def __init__(self) -> None:
        self.log = WrittenLog()
        self._lock = threading.Lock()
        self._rams: dict[str, Ram] = {}
        self._map = AddressMap(
            lambda _: None, lambda _gpa, _size: None, PHYSICAL_LIMIT, capacity=sys.maxsize
        )

    @property
    def size(self) -> int:
        """Bytes attached without a gap from address 0: what a boot loader calls memory."""
        return self._size_from(0)

    @property
    def high_size(self) -> int:
        """Bytes attached without a gap from 4 GiB on, where a PC's memory goes on behind its devices."""
        return self._size_from(HIGH_RAM)

    def attachments(self) -> list[Attachment]:
        """What is attached, in the order of the addresses."""
        with self._lock:
            return list(self._map)

    def read(self, gpa: int, size: int) -> bytes:
        """Exactly `size` bytes from `gpa`, across attachments.

        Raises NotAttached, and what `Ram.view` raises.
        """
        pieces = self._pieces(gpa, size)
        if len(pieces) == 1:
            ram, piece = pieces[0]
            return ram.read(piece.offset, size)
        return b"".join(ram.read(piece.offset, piece.size) for ram, piece in pieces)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `gpa`, across attachments, also where the guest may only read.

        Nothing is written if a part of the range is not attached. Raises as `read` does.
        """
        rest = memoryview(data).cast("B")
        for ram, piece in self._pieces(gpa, len(rest)):
            ram.write(piece.offset, rest[: piece.size])
            rest = rest[piece.size :]

    def attach(self, ram: Ram, attachment: Attachment) -> Attachment:
        """Record what core attached. What stands in the way core has unmapped, unasked: a share that was
        taken back."""
        with self._lock:
            self._rams[ram.name] = ram
            if [attachment] != self._map.overlapping(attachment.gpa, attachment.size):
                self._map.detach(attachment.gpa, attachment.size)
            return self._map.attach(
                attachment.dataspace,
                ram.size,
                attachment.gpa,
                attachment.offset,
                attachment.size,
                attachment.writable,
                attachment.executable,
            )

    def detach(self, gpa: int, size: int) -> None:
        """Record that core detached a range; an earlier core may have done it before it ended."""
        with self._lock:
            self._map.detach(gpa, size)

    def forget(self, ram: Ram) -> None:
        """A dataspace was freed: it is attached nowhere."""
        with self._lock:
            self._map.detach_dataspace(ram.name)
            self._rams.pop(ram.name, None)

    def rams(self) -> list[Ram]:
        """Every memory that is, or was, attached."""
        with self._lock:
            return list(self._rams.values())

    def written_in(self, ram: Ram, offset: int, size: int) -> None:
        """Note that a part of a dataspace was written, wherever it is attached."""
        with self._lock:
            attachments = self._map.of(ram.name)
        for attachment in attachments:
            start = max(offset, attachment.offset)
            end = min(offset + size, attachment.offset + attachment.size)
            if start < end:
                self.log.note(attachment.gpa + start - attachment.offset, end - start)

    def _size_from(self, gpa: int) -> int:
        end = gpa
        for attachment in self.attachments():
            if attachment.gpa <= end < attachment.end:
                end = attachment.end
        return end - gpa

    def _pieces(self, gpa: int, size: int) -> list[tuple[Ram, Attachment]]:
        """The attachments of a range, cut to it."""
        pieces = []
        at, end = gpa, gpa + size
        with self._lock:
            while at < end:
                attachment = self._map.find(at)
                if attachment is None:
                    raise NotAttached(gpa, size, at)
                piece = attachment.within(at, end)
                pieces.append((self._rams[attachment.dataspace], piece))
                at = piece.end
        return pieces
