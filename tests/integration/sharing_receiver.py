"""Who accepts what is shared, in a process of its own, under another user when we are root.

Each line of its input is a command as JSON; the answer is one line of JSON: what it has to tell, or the
reason why it was refused.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tests.integration.running_core import become_other_user
from vmm_client import Connection, Ram, Reason, Segment, Session, Vcpu, connect
from vmm_client.errors import Refused

PAGE = 4096
AT = 0x8000


class Receiver:
    """What it has: the memory accepted last, and a guest."""

    def __init__(self, core: Connection) -> None:
        self.core = core
        self.ram: Ram | None = None
        self.kept: list[memoryview] = []
        self.session: Session | None = None
        self.vcpu: Vcpu | None = None

    def accept(self, share: str) -> list[Any]:
        """Accept an offer."""
        self.ram = self.core.accept(share)
        return [self.ram.size, self.ram.writable, self.ram.origin]

    def offers(self) -> list[list[Any]]:
        """All that it sees."""
        return [
            [share.name, share.dataspace, share.owner.uid, share.writable]
            for share in self.core.shares()
        ]

    def poke(self, offset: int, value: int) -> str:
        """Write a byte in place."""
        assert self.ram
        self.ram.write(offset, bytes([value]))
        return "done"

    def store(self, offset: int, data: str) -> str:
        """Write through core."""
        assert self.ram
        self.ram.store(offset, bytes.fromhex(data))
        return "done"

    def peek(self, offset: int, size: int) -> str:
        """Read."""
        assert self.ram
        return self.ram.read(offset, size).hex()

    def map(self) -> str:
        """Map it, and keep the mapping."""
        assert self.ram
        self.kept.append(self.ram.view[:])
        return "done"

    def unmap(self) -> str:
        """Let go of every mapping."""
        assert self.ram
        for view in self.kept:
            view.release()
        self.kept.clear()
        self.ram.close()
        return "done"

    def close(self) -> bool:
        """Free it; whether somebody holds it."""
        assert self.ram
        self.ram.close()
        return self.ram.held

    def reopen(self) -> str:
        """Try to get a writable description of what was handed out."""
        assert self.ram
        fd = self.core.fd_channel.collect(self.ram.name)
        try:
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
        finally:
            os.close(fd)
        return "reopened"

    def run(self, engine: str, code: str) -> list[Any]:
        """Start a guest that sees the memory at 0x8000; its first exit."""
        assert self.ram
        low = self.core.create_ram(PAGE)
        low.write(0, bytes.fromhex(code))
        self.session = self.core.create_session(engine)
        self.session.attach(low, gpa=0)
        self.session.attach(self.ram, gpa=AT)
        self.vcpu = self.session.create_vcpu()
        self.vcpu.run()
        self.vcpu.wait()
        self.vcpu.registers.update({"cs": Segment(0, 0x9B, 0xFFFF, 0), "rip": 0})
        return self.go_on()

    def attach_other(self, value: int) -> list[Any]:
        """Attach memory that begins with `value` where the shared memory was; how the guest's next read
        ends, after the one that stopped it."""
        assert self.session
        other = self.core.create_ram(PAGE)
        other.write(0, bytes([value]))
        self.session.attach(other, gpa=AT)
        self.go_on()
        return self.go_on()

    def go_on(self) -> list[Any]:
        """The guest's next exit."""
        assert self.vcpu
        self.vcpu.run()
        exit_ = self.vcpu.wait()
        assert exit_
        at = exit_.value if exit_.reason == Reason.PORT else exit_.address
        return [exit_.reason.name, at]


def main() -> None:
    """The process itself."""
    become_other_user()
    with connect(sys.argv[1]) as core:
        receiver = Receiver(core)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            try:
                answer = getattr(receiver, command.replace(" ", "_"))(*arguments)
            except Refused as refusal:
                answer = refusal.reason
            except (ValueError, OSError) as error:
                answer = type(error).__name__
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
