"""The command `vmcore`."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, get_args

import uvloop

from core_service import logs
from core_service.activation import ActivationError, inherited
from core_service.audit import AuditError, AuditFailure
from core_service.audit.store import Durability
from core_service.audit.writer import FILE_EVENTS
from core_service.cgroups import delegated
from core_service.check_command import check
from core_service.drain import DRAIN_LIMIT
from core_service.drain_command import drain
from core_service.keeper.client import KeeperError
from core_service.manager import Manager
from core_service.policy import PolicyError
from core_service.service import Service, SocketInUseError
from core_service.settings import (
    Settings,
    capabilities_within,
    default_audit_directory,
    default_directory,
    running_directory,
)

PR_SET_DUMPABLE: Final = 4
UNLIMITED_DESCRIPTORS: Final = 1 << 20
DIRECTORY_DEFAULT: Final = "default: /run/vmsession for root, else vmsession in $XDG_RUNTIME_DIR"
AUDIT_DEFAULT: Final = "default: /var/lib/vmsession/audit for root, else in $XDG_STATE_HOME"


def main() -> None:
    """Entry point: exit status 0 after an orderly stop, 1 if core cannot serve, 2 for usage; `vmcore
    drain` adds its own."""
    arguments = parser().parse_args()
    sys.exit(arguments.command(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    logs.configure(arguments.log_level, os.environ)
    _protect_process()
    settings = replace(
        _limited(),
        directory=arguments.directory,
        socket_mode=arguments.socket_mode,
        grace=arguments.grace,
        policy=arguments.policy,
        keep=arguments.keep,
        audit_directory=arguments.audit_directory,
        audit_durability=arguments.audit_durability,
        audit_file_events=arguments.audit_file_events,
        audit_keep_files=arguments.audit_keep_files,
    )
    try:
        uvloop.run(serve(settings))
    except SocketInUseError as error:
        sys.exit(f"vmcore: another core serves on {error}; stop it, or choose another --directory")
    except (AuditError, AuditFailure) as error:
        sys.exit(f"vmcore: {error}; repair the audit log, or choose another --audit-directory")
    except PolicyError as error:
        sys.exit(f"vmcore: {error}; `vmcore check-config` tells what a policy says")
    except KeeperError as error:
        sys.exit(f"vmcore: {error}")
    except ActivationError as error:
        sys.exit(f"vmcore: {error}; mend the socket's unit")
    except PermissionError as error:
        sys.exit(
            f"vmcore: {error}; choose a --directory that you may write, and name "
            "its core.sock to clients by VMSESSION_SOCKET"
        )
    except OSError as error:
        sys.exit(f"vmcore: cannot serve: {error}; choose another --directory")
    return 0


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or the end of a drain."""
    service = Service(settings, Manager.of(os.environ), inherited(os.environ), delegated())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, service.tell_to_hand_over)
    loop.add_signal_handler(signal.SIGINT, service.tell_to_stop)
    if settings.policy:
        loop.add_signal_handler(signal.SIGHUP, service.read_policy_again)
    try:
        await service.start()
        print(f"vmcore: serving on {settings.socket}", flush=True)
        await service.until_told_to_stop()
    finally:
        await service.stop()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="vmcore", description="The core service of vmsession.")
    made.add_argument("--version", action="version", version=version("vmsession"))
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    _serve_options(commands.add_parser("serve", help="run the service in the foreground"))
    _check_options(
        commands.add_parser(
            "check-config", help="tell what a policy says, or what is wrong with it"
        )
    )
    _drain_options(
        commands.add_parser(
            "drain",
            help="end the service when the last session ended",
            description="End the service when the last session ended; it takes no new ones. Exit "
            "status: 0 when all ended by themselves, 3 when core ended some, 1 when it cannot be asked.",
        )
    )
    return made


def _limited() -> Settings:
    """The defaults, within what the system allows this process."""
    capabilities, of_client = capabilities_within(_raise_descriptor_limit())
    return Settings(capabilities=capabilities, client_capabilities=of_client)


def _check_options(checking: argparse.ArgumentParser) -> None:
    checking.set_defaults(command=lambda arguments: check(arguments, _limited()))
    checking.add_argument("file", type=Path, metavar="FILE", help="the policy, as for --policy")
    checking.add_argument("--json", action="store_true", help="print it as JSON")


def _drain_options(draining: argparse.ArgumentParser) -> None:
    draining.set_defaults(command=drain)
    draining.add_argument(
        "--within",
        type=_seconds(DRAIN_LIMIT),
        metavar="SECONDS",
        help="end what is left after this time (default: no limit)",
    )
    draining.add_argument(
        "--directory",
        type=Path,
        default=running_directory(),
        metavar="DIR",
        help="where its sockets are (default: those of your own core if it serves, else /run/vmsession)",
    )


def _serve_options(serving: argparse.ArgumentParser) -> None:
    serving.set_defaults(command=_serve)
    serving.add_argument(
        "--directory",
        type=Path,
        default=default_directory(),
        metavar="DIR",
        help=f"where the sockets core.sock and fds.sock are made ({DIRECTORY_DEFAULT})",
    )
    serving.add_argument(
        "--socket-mode",
        type=_mode,
        default=0o660,
        metavar="MODE",
        help="permissions of the sockets in octal: who may connect (default: 660)",
    )
    serving.add_argument(
        "--grace",
        type=_seconds(3600),
        default=5.0,
        metavar="SECONDS",
        help="seconds for which a client's sessions outlive its lease (default: 5)",
    )
    serving.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="who may have how much, and see whom; read again on SIGHUP (default: everybody who can "
        "connect has the same limits)",
    )
    serving.add_argument(
        "--keep",
        type=_seconds(24 * 3600),
        default=0.0,
        metavar="SECONDS",
        help="let virtual machines go on for so long while no core runs: SIGTERM and kill -9 leave "
        "them to the next core, SIGINT and `vmcore drain` end them (default: 0, they end with core)",
    )
    serving.add_argument(
        "--audit-directory",
        type=Path,
        default=default_audit_directory(),
        metavar="DIR",
        help=f"where the audit log is kept ({AUDIT_DEFAULT})",
    )
    serving.add_argument(
        "--audit-durability",
        choices=get_args(Durability),
        default="process",
        help="what the log survives, to its last event: the end of the process, or the loss of power, "
        "which costs a disk write for each change (default: process)",
    )
    serving.add_argument(
        "--audit-file-events",
        type=_count(1),
        default=FILE_EVENTS,
        metavar="N",
        help="events after which a new file of the log begins (default: %(default)s)",
    )
    serving.add_argument(
        "--audit-keep-files",
        type=_count(0),
        default=0,
        metavar="N",
        help="newest files of the log that are kept; 0 keeps all (default: 0)",
    )
    serving.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least that is logged (default: info)",
    )


def _mode(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (mode := int(text, 8)) <= 0o777:
            return mode
    raise argparse.ArgumentTypeError(f"{text!r} is no octal number within 0 and 777")


def _count(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if text.isascii() and text.isdecimal() and least <= int(text) <= 1 << 31:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no number within {least} and {1 << 31}")

    return count


def _seconds(most: float) -> Callable[[str], float]:
    def seconds(text: str) -> float:
        with suppress(ValueError):
            if 0 <= (value := float(text)) <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not within 0 and {most:.0f} seconds")

    return seconds


def _protect_process() -> None:
    """No other process of this user may look into core: it holds every client's memory. And engines are
    reaped here, also if whoever started core ignores its own children's ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _raise_descriptor_limit() -> int:
    """As many fds as the system allows; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
