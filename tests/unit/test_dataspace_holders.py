"""Who still holds a memory: fds, mappings, messages in flight and fork heirs of other processes."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataspace.memory import Memory, ram

PAGE = 4096
ROOT = Path(__file__).parents[2]


class Holder:
    """Another process, which was given one description of the memory."""

    def __init__(self, fd: int) -> None:
        program = Path(__file__).with_name("dataspace_holder.py")
        self.process = subprocess.Popen(
            [sys.executable, program, str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=[fd],
        )
        os.close(fd)

    def tell(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        return self.process.stdout.readline().strip()

    def exit(self) -> None:
        self.process.communicate(timeout=20)


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def memory() -> Iterator[Memory]:
    before = open_fds()
    with ram(2 * PAGE, "held") as made:
        yield made
    assert open_fds() == before


@pytest.mark.parametrize("writable", [True, False])
def test_fd_then_mapping_of_another_process_hold(memory: Memory, writable: bool) -> None:
    holder = Holder(memory.open(writable))
    assert holder.tell("map") == "done"
    assert memory.held()
    assert holder.tell("close") == "done"
    assert memory.held()
    assert holder.tell("unmap") == "done"
    assert not memory.held()
    holder.exit()


def test_exit_of_the_holder_lets_go(memory: Memory) -> None:
    holder = Holder(memory.open(True))
    assert holder.tell("map") == "done"
    assert memory.held()
    holder.exit()
    assert not memory.held()


def test_fork_heir_of_a_dead_holder_holds(memory: Memory) -> None:
    holder = Holder(memory.open(True))
    heir = os.pidfd_open(int(holder.tell("fork")))
    try:
        # The heir has the holder's standard output, too: no end of file would come from there.
        assert holder.process.stdin is not None
        assert holder.process.stdout is not None
        holder.process.stdin.close()
        holder.process.stdout.close()
        assert holder.process.wait(timeout=20) == 0
        assert memory.held()
    finally:
        signal.pidfd_send_signal(heir, signal.SIGKILL)
        ended, _, _ = select.select([heir], [], [], 20)
        os.close(heir)
    assert ended
    assert not memory.held()


def test_fd_in_flight_holds(memory: Memory) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        fd = memory.open(True)
        socket.send_fds(near, [b"memory"], [fd])
        os.close(fd)
        assert memory.held()
        _, [received], _, _ = socket.recv_fds(far, 16, 1)
        assert memory.held()
        os.close(received)
        assert not memory.held()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_make_a_read_only_description_writable(memory: Memory) -> None:
    holder = Holder(memory.open(False))
    assert holder.tell("become another user") == "done"
    assert holder.tell("reopen") == "EACCES"
    holder.exit()


UNPRIVILEGED_CORE = """
import ctypes, os
from dataspace.memory import ram
if os.geteuid() == 0:
    os.setgroups([])
    os.setresuid(65534, 65534, 65534)
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
memory = ram(4096, "core")
answers = [memory.held()]
for writable in True, False:
    fd = memory.open(writable)
    answers.append(memory.held())
    os.close(fd)
    answers.append(memory.held())
print(answers)
"""


def test_unprivileged_core_that_is_not_dumpable_can_open_and_probe() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED_CORE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", "[False, True, False, True, False]\n")
