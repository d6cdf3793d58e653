"""The command `vmcore`."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, TextIO, cast

import structlog
import uvloop

from core_service.service import Service, SocketInUseError
from core_service.settings import Settings, capabilities_within, default_directory

PR_SET_DUMPABLE: Final = 4
UNLIMITED_DESCRIPTORS: Final = 1 << 20


def main() -> None:
    """Entry point: exit status 0 after an orderly stop, 1 if core cannot serve, 2 for usage."""
    arguments = _parser().parse_args()
    _configure_log(arguments.log_level)
    _protect_process()
    capabilities, client_capabilities = capabilities_within(_raise_descriptor_limit())
    settings = Settings(
        directory=arguments.directory,
        socket_mode=arguments.socket_mode,
        grace=arguments.grace,
        capabilities=capabilities,
        client_capabilities=client_capabilities,
        rom_paths=tuple(arguments.rom_path),
    )
    try:
        uvloop.run(serve(settings))
    except SocketInUseError as error:
        sys.exit(f"vmcore: another core serves on {error}; stop it, or choose another --directory")
    except PermissionError as error:
        sys.exit(
            f"vmcore: {error}; choose a --directory that you may write, and name "
            "its core.sock to clients by VMSESSION_SOCKET"
        )
    except OSError as error:
        sys.exit(f"vmcore: cannot serve: {error}; choose another --directory")


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    service = Service(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await service.start()
        print(f"vmcore: serving on {settings.socket}", flush=True)
        await stop.wait()
    finally:
        await service.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmcore", description="The core service of vmsession.")
    parser.add_argument("--version", action="version", version=version("vmsession"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="run the service in the foreground")
    serving.add_argument(
        "--directory",
        type=Path,
        default=default_directory(),
        help="where the sockets core.sock and fds.sock are made (default: %(default)s)",
    )
    serving.add_argument(
        "--socket-mode",
        type=_mode,
        default=0o660,
        help="permissions of the sockets in octal: who may connect (default: 660)",
    )
    serving.add_argument(
        "--grace",
        type=_seconds,
        default=5.0,
        help="seconds for which a client's sessions outlive its lease (default: 5)",
    )
    serving.add_argument(
        "--rom-path",
        type=_directory,
        action="append",
        default=[],
        metavar="DIR",
        help="let clients have ROMs of the files below DIR that core can read; repeatable "
        "(default: none)",
    )
    serving.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    return parser


def _mode(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (mode := int(text, 8)) <= 0o777:
            return mode
    raise argparse.ArgumentTypeError(f"{text!r} is no octal number within 0 and 777")


def _directory(text: str) -> Path:
    with suppress(OSError):
        if (directory := Path(text).resolve(strict=True)).is_dir():
            return directory
    raise argparse.ArgumentTypeError(f"{text!r} is no directory")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not within 0 and 3600 seconds")


class _Stderr:
    """Standard error, of which nothing depends: a log that is full or gone must not keep core from
    freeing what its clients leave. Past Python's buffer, which would fail once more at exit."""

    @staticmethod
    def write(text: str) -> None:
        with suppress(OSError):
            os.write(2, text.encode())

    @staticmethod
    def flush() -> None:
        """Nothing is kept."""


def _configure_log(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
    )


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
