"""Entry point of `vmm`, and how it fails.

Exit status: 0 done, 1 an error (one line on stderr, and what to do next), 2 wrong usage, 130
interrupted from the keyboard. `vmm run`, `vmm boot` and `vmm diff` add their own.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Final

from cyclopts import App, CycloptsError

from vmm_client.boot.entry import ImageError
from vmm_client.errors import VmsessionError

USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141  # as a shell tells of SIGPIPE
AUDIT: Final = "audit"  # has commands of its own

HELP: Final = """\
Virtual machines without privilege: the client of the vmsession core.

Begin with `vmm doctor`: it tells what works here, and what to do where nothing does.

Exit status: 0 done, 1 an error (a line on stderr, and what to do next), 2 wrong usage, 130
interrupted from the keyboard. `vmm run`, `vmm boot` and `vmm diff` add their own."""

# name: (function, help); the module is imported when the command is used, its help when it is asked for.
COMMANDS: Final = {
    "boot": (
        "vmm_client.cli.boot:boot",
        """\
Boot Linux, with its console on this terminal.

Ctrl-A x leaves, Ctrl-A a sends Ctrl-A.

Exit status: 0 when the guest powered off or halted, 3 when it reset itself, 4 after a triple fault,
5 when the engine cannot go on, 130 when you left, 129 or 143 when SIGHUP or SIGTERM ended it; 1 and
2 as everywhere.""",
    ),
    "run": (
        "vmm_client.cli.run:run",
        """\
Run a flat binary as a guest.

What it writes to COM1 or to port 0xe9 appears on stdout.

Exit status: 0 when the guest powered off or halted with interrupts off, 3 when it reset itself,
4 after a triple fault, 5 when the engine cannot go on; 1, 2 and 130 as everywhere.""",
    ),
    "diff": (
        "vmm_client.cli.diff:diff",
        """\
Run a flat binary on two engines and tell where they first differ.

Registers, memory and exits are compared; docs/diff.md tells what is not. What the guest reads from
devices is made of --seed, the same on both. Ends where the guest halts, shuts down or cannot go on.

Exit status: 0 when they behaved alike, 3 when they did not; 1, 2 and 130 as everywhere.""",
    ),
    "sessions": (
        "vmm_client.cli.sessions:sessions",
        """\
List the sessions that core lets you see.

You see those of all your processes; core's own user and root see everybody's.""",
    ),
    "dataspaces": (
        "vmm_client.cli.dataspaces:dataspaces",
        """\
Tell who holds which memory, now and before.

You see what all your processes hold; core's own user and root see everybody's.""",
    ),
    "top": (
        "vmm_client.cli.top:top",
        """\
Watch sessions, vCPUs, memory and the latest events.

`q` leaves. Rates are over the time between two looks; cpu_percent is that of the vCPU's thread in its
engine.""",
    ),
    "audit log": (
        "vmm_client.cli.audit.log:log",
        """\
Tell what happened, oldest first.

Moments are written as in `last tuesday`, `yesterday 14:00`, `3h ago`, `2026-11-17 14:00`; a day is its
beginning.""",
    ),
    "audit history": (
        "vmm_client.cli.audit.history:history",
        "Tell the life of one object, event by event, also after its end.",
    ),
    "audit watch": (
        "vmm_client.cli.audit.watch:watch",
        """\
Tell what happens, as it is recorded.

Ctrl-C leaves.""",
    ),
    "audit totals": (
        "vmm_client.cli.audit.totals:totals",
        "Sum up what lives, and what ever lived.",
    ),
    "audit verify": (
        "vmm_client.cli.audit.verify:verify",
        """\
Compare the ledger with engines, kernel, accounts and the log's hashes.

For core's own user and root.

Exit status: 0 when everything agrees, 1 when something does not, or there is no answer.""",
    ),
    "audit export": (
        "vmm_client.cli.audit.export:export",
        """\
Write the log as lines of JSON, with hashes that can be checked without core.

Whoever does not see everything gets what concerns him, which is no whole chain.""",
    ),
    "health": (
        "vmm_client.cli.health:health",
        """\
Tell whether core serves, and which of its services.

Core does not serve while it starts or drains, while its log cannot be written, or when no engine works.

Exit status: 0 when core serves, 1 when it does not, or there is none.""",
    ),
    "metrics": (
        "vmm_client.cli.metrics:metrics",
        """\
Offer core's numbers to Prometheus.

Serves them over HTTP at --listen, or writes them to --textfile for the node exporter, or prints them
--once. Shows what you see: the sessions and memory of your processes, or everybody's where you may see
those. Whoever reaches the address sees them, too. While no core answers it tells vmsession_up 0, and
goes on. Needs the extra `metrics` of the distribution.""",
    ),
    "doctor": (
        "vmm_client.cli.doctor:doctor",
        """\
Find out what works on this host, and why not.

Looks at the installation: socket, policy, what core has and lacks, how its engines are confined. Tries
guest modes and instructions on every engine, and says which engine boots stock kernels. A `-` says that
you cannot see it, or that one can do without.

Exit status: 0 when some engine boots stock kernels, 1 when none does, or there is no core; with
--installation 0 when nothing has to be mended, 1 when something has.""",
    ),
}

app = App(
    name="vmm",
    help=HELP,
    version=lambda: version("vmsession"),
    suppress_keyboard_interrupt=False,
    result_action="return_int_as_exit_code_else_zero",
)
audit = App(name=AUDIT, help="Ask the audit log what happened, and whether all of it agrees.")
app.command(audit)
for name, (function, text) in COMMANDS.items():
    if name.startswith(f"{AUDIT} "):
        audit.command(function, name=name.removeprefix(f"{AUDIT} "), help=text)
    else:
        app.command(function, name=name, help=text)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments`, by default the process's own, and exit."""
    sys.exit(status_of(arguments))


def status_of(arguments: list[str] | None) -> int:
    """Run a command; every way to fail becomes an exit status and a line on stderr."""
    try:
        status = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        _say(f"{error}", "see `vmm --help`")
        return USAGE
    except VmsessionError as error:
        _say(f"{error}", error.hint)
        return 1
    except (ImageError, OSError) as error:
        return _system_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return int(status)


def _system_error(error: ImageError | OSError) -> int:
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more at exit, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if isinstance(error, OSError) and error.strerror:
        _say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    else:
        _say(str(error))
    return 1


def _say(what: str, hint: str = "") -> None:
    print(f"vmm: {what}" + (f"\n     {hint}" if hint else ""), file=sys.stderr)
