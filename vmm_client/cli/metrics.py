"""`vmm metrics`."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from vmm_client.cli.numbers import Seconds
from vmm_client.core_socket import socket_path
from vmm_client.errors import VmsessionError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LISTEN: Final = "127.0.0.1:9464"


def metrics(
    *,
    listen: str = LISTEN,
    textfile: Path | None = None,
    once: Annotated[bool, Parameter(negative="")] = False,
    interval: Seconds = 15.0,
    socket: str | None = None,
) -> None:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    listen
        Address and port to serve at, as in `127.0.0.1:9464` or `[::1]:9464`.
    textfile
        Write this file instead, again and again: whole, or not at all. Its name ends in `.prom`.
    once
        Print the numbers, or write the file once, and leave.
    interval
        Seconds between two writes of the file.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    try:
        from prometheus_client import CollectorRegistry  # noqa: PLC0415 - an optional dependency

        from vmm_client.metrics.collector import CoreCollector  # noqa: PLC0415
        from vmm_client.metrics.look import Reader  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise VmsessionError(
            f"{error}", "install the distribution as vmsession[metrics]"
        ) from error
    with closing(Reader(socket or socket_path())) as reader:
        registry = CollectorRegistry()
        registry.register(CoreCollector(reader))
        if textfile:
            _write(registry, textfile, None if once else interval)
        elif once:
            _print(registry)
        else:
            _serve(registry, *_address(listen))


def _print(registry: CollectorRegistry) -> None:
    from prometheus_client import generate_latest  # noqa: PLC0415

    sys.stdout.write(generate_latest(registry).decode())


def _write(registry: CollectorRegistry, path: Path, interval: float | None) -> None:
    from prometheus_client import write_to_textfile  # noqa: PLC0415

    while True:
        write_to_textfile(str(path), registry)
        if interval is None:
            return
        time.sleep(interval)


def _serve(registry: CollectorRegistry, host: str, port: int) -> None:
    from vmm_client.metrics.server import http_server  # noqa: PLC0415

    with http_server(host, port, registry) as server:
        address = f"[{host}]" if ":" in host else host
        print(f"vmm: metrics at http://{address}:{server.server_port}/metrics", flush=True)
        server.serve_forever()


def _address(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not separator or not (port.isascii() and port.isdecimal()) or int(port) > 0xFFFF:
        raise VmsessionError(f"--listen {listen!r} is no address and port", f"as in {LISTEN}")
    return host.removeprefix("[").removesuffix("]"), int(port)
