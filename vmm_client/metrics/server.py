"""The HTTP server of metrics: few at once, and nobody who stays long."""

from __future__ import annotations

import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

AT_ONCE: Final = 8
SECONDS: Final = 10.0


class _Handler(WSGIRequestHandler):
    timeout = SECONDS

    def log_message(self, *_arguments: object) -> None:
        """A scrape is no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(AT_ONCE)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Server6(_Server):
    address_family = socket.AF_INET6


def http_server(host: str, port: int, registry: CollectorRegistry) -> WSGIServer:
    """A server that listens; `serve_forever` answers, `server_close` ends it. Raises OSError."""
    kind = _Server6 if ":" in host else _Server
    return make_server(host, port, make_wsgi_app(registry), kind, _Handler)
