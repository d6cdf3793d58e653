"""Identity, case by case: each row of the table in SECURITY.md, with real processes of two users."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from vmsession.v1 import audit_pb2

from tests.integration.running_core import ROOT, VMCORE, RunningCore, Stubs
from tests.integration.test_adoption import kept
from tests.integration.waiting import eventually
from tests.security.actor import ALICE, BOB, Actor

__all__ = ["kept"]

Cast = Callable[[int], Actor]
BY_UID = audit_pb2.GetTotalsRequest(group_by=audit_pb2.GROUPING_UID)
LINUX = tuple(map(int, os.uname().release.split(".")[:2]))
ALONE = (
    *("unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"),
    *("sh", "-c", "echo alone; read line"),
)
DENIED = "error DENIED the ticket is unknown, spent, too old, or another process's"


def clients(core: RunningCore) -> int:
    """How many there are beside the one that asks."""
    stubs = Stubs(core.socket)
    try:
        return stubs.totals().clients - 1
    finally:
        stubs.close()


# -- another's ticket


@pytest.mark.parametrize("thief", [BOB, ALICE], ids=["another user", "same user"])
def test_a_stolen_ticket_is_good_for_nothing(actor: Cast, thief: int) -> None:
    alice, other = actor(ALICE), actor(thief)
    ticket = alice("ticket")
    assert other("present", ticket) == DENIED
    assert alice("present", ticket) == DENIED  # spent: its owner learns that it was stolen
    assert alice("present", alice("ticket")) == "ok"


# -- a connection that goes from hand to hand


def test_a_passed_connection_is_its_first_owners(core: RunningCore, actor: Cast) -> None:
    alice, bob = actor(ALICE), actor(BOB)
    alice("dial")
    passed = alice.passed("give")
    assert bob("who") == [BOB, BOB, bob.pid]
    bob("speak", fd=passed)
    os.close(passed)
    assert bob("who") == [ALICE, ALICE, alice.pid]
    owned = bob("own")
    assert alice("dataspaces") == [owned["dataspace"]]
    assert bob("memory") in alice("dataspaces")
    alice.end()
    eventually(lambda: clients(core) == 1)  # bob, as he came himself
    assert bob("who") == "UNAVAILABLE"  # and nothing is seen by it any more


def test_a_connection_ends_with_its_process_also_after_the_lease() -> None:
    core = RunningCore("--grace", "0.2")
    try:
        with Actor(core, ALICE) as alice, Actor(core, BOB) as bob:
            alice("dial")
            passed = alice.passed("give")
            bob("speak", fd=passed)
            os.close(passed)
            bob("memory")
            eventually(lambda: bob("memory") == "SHUTTING_DOWN")
            assert bob("who") == [ALICE, ALICE, alice.pid]
            alice.end()
            eventually(lambda: bob("who") == "UNAVAILABLE")
            core.stop()
    finally:
        core.close()


def test_a_passed_fd_channel_is_its_first_owners(core: RunningCore, actor: Cast) -> None:
    alice, bob = actor(ALICE), actor(BOB)
    assert alice("present", alice("ticket")) == "ok"
    memory, others = alice("memory"), bob("memory")
    passed = alice.passed("give_channel")
    bob("take_channel", fd=passed)
    os.close(passed)
    assert bob("collect", others).startswith("error NOT_FOUND ")
    assert bob("collect", memory) == "ok"
    alice.end()
    stubs = Stubs(core.socket)
    eventually(
        lambda: stubs.totals().held_bytes == 4096
    )  # charged to alice's user while bob has it
    (group,) = [each for each in stubs.audit.GetTotals(BY_UID).groups if each.group == str(ALICE)]
    assert group.held_bytes == 4096
    bob("let_go")
    eventually(lambda: stubs.totals().held_bytes == 0)
    stubs.close()


def test_an_unidentified_fd_channel_is_of_who_connected(actor: Cast) -> None:
    alice, bob = actor(ALICE), actor(BOB)
    bob("dial_fds")
    passed = bob.passed("give")
    assert alice("present", alice("ticket"), fd=passed) == DENIED
    os.close(passed)


# -- fork


def test_a_forked_child_has_what_it_inherited_and_no_more(core: RunningCore, actor: Cast) -> None:
    alice = actor(ALICE)
    alice("dial")
    child = alice("fork")
    assert alice("who") == [ALICE, ALICE, child]  # a connection of its own makes it another client
    own = alice("memory")
    alice("speak")
    assert alice("who") == [ALICE, ALICE, alice.process.pid]
    inherited = alice("memory")
    assert alice("dataspaces") == [inherited]
    eventually(lambda: clients(core) == 2)
    alice.process.kill()
    alice.process.wait(20)
    eventually(lambda: clients(core) == 1)
    assert alice("who") == "UNAVAILABLE"
    assert own != inherited


def test_memory_that_a_forked_child_holds_stays_charged(core: RunningCore, actor: Cast) -> None:
    alice = actor(ALICE)
    assert alice("present", alice("ticket")) == "ok"
    assert alice("collect", alice("memory")) == "ok"
    stubs = Stubs(core.socket)
    alice("fork")
    alice.process.kill()
    alice.process.wait(20)
    eventually(lambda: stubs.totals().held_bytes == 4096)
    alice("let_go")
    eventually(lambda: stubs.totals().live == 0)
    stubs.close()


# -- a process id that is used again


@pytest.fixture
def heir(core: RunningCore) -> Iterator[Callable[[Actor], Actor]]:
    """Ends a process, and starts another one of its user with its id."""
    with ExitStack() as stack:

        def follow(former: Actor) -> Actor:
            former.end()
            before = (sys.executable, "-m", "tests.security.with_pid", str(former.pid))
            made = stack.enter_context(Actor(core, ALICE, before))
            assert made.pid == former.pid
            return made

        yield follow


def test_a_reused_pid_inherits_nothing(actor: Cast, heir: Callable[[Actor], Actor]) -> None:
    alice, owner = actor(ALICE), actor(BOB)
    ticket = alice("ticket")
    alice("memory")
    owner("lease")
    offered = owner("offer", owner("memory"), ALICE, alice.pid)
    other = heir(alice)
    assert other("present", ticket) == DENIED
    assert other("dataspaces") == []
    assert other("accept", offered) == "NOT_FOUND"
    assert other("accept", owner("offer", owner("memory"), ALICE, other.pid)).startswith(
        "dataspaces/"
    )


def test_an_offer_to_no_process_is_for_no_later_one(
    actor: Cast, heir: Callable[[Actor], Actor]
) -> None:
    alice, owner = actor(ALICE), actor(BOB)
    owner("lease")
    alice.end()
    offered = owner("offer", owner("memory"), ALICE, alice.pid)
    assert heir(alice)("accept", offered) == "NOT_FOUND"


def test_a_connection_that_waited_is_not_of_who_has_its_pid_now(
    core: RunningCore, actor: Cast, heir: Callable[[Actor], Actor]
) -> None:
    alice, accomplice = actor(ALICE), actor(ALICE)
    core.process.send_signal(signal.SIGSTOP)
    alice("dial")
    passed = alice.passed("give")
    other = heir(alice)
    other("dial")  # both wait to be let in
    core.process.send_signal(signal.SIGCONT)
    other("speak")
    memory = other("own")["dataspace"]
    accomplice("speak", fd=passed)
    os.close(passed)
    assert accomplice("dataspaces") == "UNAVAILABLE"  # core let it go: its process ended
    assert other("dataspaces") == [memory]


def test_a_waiting_fd_channel_is_not_of_who_has_its_pid_now(
    actor: Cast, heir: Callable[[Actor], Actor]
) -> None:
    alice, accomplice = actor(ALICE), actor(ALICE)
    alice("dial_fds")
    passed = alice.passed("give")
    alice("who")  # by then core knows of both connections
    other = heir(alice)
    assert accomplice("present", other("ticket"), fd=passed) == DENIED
    os.close(passed)


# -- another PID namespace


@pytest.fixture
def hidden() -> Iterator[tuple[RunningCore, Callable[[], Actor]]]:
    """A core in a PID namespace of its own, and what starts processes of alice's outside: they have no
    process id there."""
    alone = subprocess.Popen(
        [*ALONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert alone.stdout
    assert alone.stdout.readline() == "alone\n"
    (first,) = Path(f"/proc/{alone.pid}/task/{alone.pid}/children").read_text().split()
    command = (sys.executable, "-m", "tests.security.within", first, VMCORE)
    core = RunningCore("--keep", "30", command=command)
    try:
        with ExitStack() as stack:
            yield core, lambda: stack.enter_context(Actor(core, ALICE))
        core.stop()
    finally:
        core.close()
        alone.communicate()


@pytest.mark.skipif(LINUX < (6, 9), reason="Linux before 6.9 does not number processes")
def test_processes_without_a_pid_are_told_apart(
    hidden: tuple[RunningCore, Callable[[], Actor]],
) -> None:
    core, start = hidden
    alice, other = start(), start()
    assert alice("who") == other("who") == [ALICE, ALICE, 0]
    owned = alice("own")
    assert other("dataspaces") == []
    assert other("present", alice("ticket")) == DENIED
    assert alice("present", alice("ticket")) == "ok"
    assert alice("collect", owned["dataspace"]) == "ok"
    alice("let_go")
    core.restart(signal.SIGTERM)
    alice("dial")
    alice("speak")  # by whichever of its connections, and to whichever core
    assert alice("dataspaces") == [owned["dataspace"]]
    assert other("present", other("ticket")) == "ok"
    alice.end()
    other.end()
    eventually(lambda: clients(core) == 0)


# -- the names that core gives to connections


SQUATTER = r"""
import re, socket, sys
from contextlib import suppress
from tests.integration.running_core import become_other_user
become_other_user()
squatted = []
for name in sys.argv[1:]:
    last = list(re.finditer(r"\d+", name))[-1]
    for following in range(int(last[0]) + 1, int(last[0]) + 50):
        squatted.append(socket.socket(socket.AF_UNIX))
        with suppress(OSError):  # taken: by core, or by us
            squatted[-1].bind(f"\0{name[:last.start()]}{following}{name[last.end():]}")
print(len(squatted), flush=True)
sys.stdin.read()
"""


def names_of(core: RunningCore) -> list[str]:
    """The abstract names of a core's sockets. Who sees only the table takes those of all cores."""
    fds = Path(f"/proc/{core.process.pid}/fd").iterdir()
    inodes = {re.sub(r"\D", "", str(fd.readlink())) for fd in fds}
    table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return [line[7][1:] for line in table if line[6] in inodes and line[7:] and line[7][0] == "@"]


def test_nobody_takes_the_name_of_the_next_connection(core: RunningCore, actor: Cast) -> None:
    """Everybody can read the names in /proc/net/unix, and bind others."""
    alice, bob = actor(ALICE), actor(BOB)
    alice("who")
    squatter = subprocess.Popen(
        [sys.executable, "-c", SQUATTER, *names_of(core)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert squatter.stdout
        assert squatter.stdout.readline() == "49\n"
        assert bob("who") == [BOB, BOB, bob.pid]
    finally:
        squatter.communicate("")


# -- an fd channel that is not read


def test_who_does_not_read_keeps_nobody_from_getting_fds() -> None:
    """The kernel limits the fds in flight of core's user, all clients together; root has no limit."""
    script = (
        "import os, sys\n"
        "from core_service.main import main\n"
        "os.setgroups([]); os.setresgid(64005, 64005, 64005); os.setresuid(64005, 64005, 64005)\n"
        "sys.exit(main())"
    )
    limited = ("prlimit", "--nofile=320", sys.executable, "-c", script)
    core = RunningCore(command=limited)
    try:
        with Actor(core, ALICE) as alice, Actor(core, BOB) as bob:
            alice("stuff", alice("memory"), 16, 40)
            assert bob("present", bob("ticket")) == "ok"
            for _ in range(3):
                assert bob("collect", bob("memory")) == "ok"
    finally:
        core.close()


# -- the keeper's socket


def test_the_keeper_serves_no_other_user(kept: RunningCore, actor: Cast) -> None:
    path = kept.directory / "keeper.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)  # as if a directory let him in
    script = (
        "import socket, sys\n"
        "from tests.integration.running_core import become_other_user\n"
        "become_other_user()\n"
        "keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "keeper.connect(sys.argv[1])\n"
        "print(keeper.recv(1 << 16))\n"
    )
    kept.kill()  # so that the keeper waits for a core
    asked = subprocess.run(
        [sys.executable, "-c", script, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert asked.stdout == "b''\n"
    path.chmod(0o600)
    kept.restart(signal.SIGCONT)
