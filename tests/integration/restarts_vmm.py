"""A VMM process whose guest counts: `restarts_vmm SOCKET ENGINE TRANSPORT`. It serves exits on one
thread and makes control calls on another until its input ends. Then it says, as JSON, how many exits it
served, what the guest counted, how many calls it made, and the longest of both in seconds."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time

from tests.integration.running_core import become_other_user
from vmm_client import Connection, Reason, Segment, Session, Vcpu, connect

PAGE = 4096
COUNTER = bytes.fromhex(
    "66ff060080 e6e9 ebf7"
)  # again: inc dword [0x8000]; out 0xe9, al; jmp again


class Served:
    """The guest's exits, until told to stop."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.exits = 0
        self.longest = 0.0
        self.wrong = ""
        self.over = threading.Event()
        self._vcpu = vcpu
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        last = time.monotonic()
        while not self.over.is_set():
            self._vcpu.run()
            exit_ = self._vcpu.wait()
            if exit_ is None or exit_.reason is not Reason.PORT:
                self.wrong = f"{exit_}"
                return
            self.exits += 1
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now


class Calls:
    """Control calls one after the other: memory comes, is attached, mapped, detached, and goes."""

    def __init__(self, core: Connection, session: Session) -> None:
        self.count = 0
        self.longest = 0.0
        self._core = core
        self._session = session

    def make_one(self) -> None:
        """A round of them."""
        start = time.monotonic()
        ram = self._core.create_ram(2 * PAGE)
        self._session.attach(ram, 0x10000)
        ram.write(0, b"mapped")
        assert ram.read(0, 6) == b"mapped"
        self._session.detach(0x10000, PAGE)
        assert not ram.held
        ram.close()
        self.count += 1
        self.longest = max(self.longest, time.monotonic() - start)


def listen(asked: queue.SimpleQueue[str], over: threading.Event) -> None:
    """Each line asks for a round of calls; then the input ends."""
    for line in sys.stdin:
        asked.put(line)
    over.set()


def main() -> None:
    """The process itself."""
    become_other_user()
    socket, engine, transport = sys.argv[1:]
    with connect(socket) as core:
        code, counter = core.create_ram(PAGE), core.create_ram(PAGE)
        session = core.create_session(engine, label="counts")
        session.attach(code, 0)
        session.attach(counter, 0x8000)
        code.write(0, COUNTER)
        vcpu = session.create_vcpu(stream=transport == "stream")
        vcpu.run()
        vcpu.wait()
        vcpu.registers.update({"cs": Segment(0, 0x9B, 0xFFFF, 0), "rip": 0})
        served, calls = Served(vcpu), Calls(core, session)
        served.thread.start()
        over = threading.Event()
        asked = queue.SimpleQueue[str]()
        threading.Thread(target=listen, args=(asked, over), daemon=True).start()
        print(json.dumps(session.name), flush=True)
        while not over.is_set() and not served.wrong:
            wanted = not asked.empty() and asked.get()
            calls.make_one()
            if wanted:
                print("made", flush=True)
        served.over.set()
        served.thread.join()
        told = {
            "exits": served.exits,
            "counted": int.from_bytes(counter.read(0, 4), "little"),
            "calls": calls.count,
            "longest_call": round(calls.longest, 3),
            "longest_gap": round(served.longest, 3),
            "wrong": served.wrong,
            "session": next(
                each.name for each in core.sessions() if each.client.pid == os.getpid()
            ),
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
