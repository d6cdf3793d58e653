"""The service: core behind its sockets, from start to stop."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from vmsession.v1 import audit_pb2_grpc, core_pb2_grpc, dataspace_pb2_grpc, vm_session_pb2_grpc

from core_service import activation
from core_service.audit import AuditFailure, AuditLog
from core_service.census import take_census
from core_service.cgroups import Cgroups
from core_service.core import Core
from core_service.fd_channel import FdChannels
from core_service.front_door import BACKLOG, FrontDoor
from core_service.health import HEALTH, SERVICES, Health
from core_service.keeper.client import SOCKET, Keeper, Record
from core_service.kept import Kept
from core_service.life import Phase
from core_service.manager import Manager
from core_service.policy import Policy, PolicyError, load
from core_service.rpc.audit_servicer import AuditServicer
from core_service.rpc.core_servicer import CoreServicer
from core_service.rpc.dataspace_servicer import DataspaceServicer
from core_service.rpc.health_servicer import HealthServicer
from core_service.rpc.interceptor import Errors
from core_service.rpc.log_context import LogContext
from core_service.rpc.recording import Recording
from core_service.rpc.vm_session_servicer import VmSessionServicer
from core_service.workers import workers

if TYPE_CHECKING:
    from core_service.settings import Settings

log = structlog.get_logger()

INNER: Final = "inner-"
SOCKET_PATH_LIMIT: Final = 107  # unix(7): sun_path, with the NUL that ends it
STOP_GRACE: Final = 1.0
STREAMS_PER_CONNECTION: Final = 1024


class SocketInUseError(Exception):
    """Another core serves on this socket."""


class Service:
    """Owns the sockets, their files, and core."""

    def __init__(
        self,
        settings: Settings,
        manager: Manager | None = None,
        passed: dict[str, socket.socket] | None = None,
        given: Path | None = None,
    ) -> None:
        """`passed` are sockets of the service manager's, by name; what is not there, core makes. `given`
        is the cgroup that is core's to divide."""
        self._settings = settings
        self._manager = manager or Manager()
        self._passed = passed or {}
        self._given = given
        self._cgroups = Cgroups()
        self._core: Core | None = None
        self._health: Health | None = None
        self._told_to_stop = asyncio.Event()
        self._one_reading = asyncio.Lock()
        self._reading: set[asyncio.Task[None]] = set()
        self._keeper: Keeper | None = None
        self._hands_over = False
        self._bound: list[Path] = []
        self._adopted: set[str] = set()
        self._inner: Path | None = None
        self._lock = -1
        self._server: grpc.aio.Server | None = None
        self._door: FrontDoor | None = None
        self._channels: FdChannels | None = None

    async def start(self) -> None:
        """Serve. Raises OSError, SocketInUseError, KeeperError, ActivationError, PolicyError,
        AuditError, AuditFailure."""
        policy = load(self._settings.policy, self._settings)
        asyncio.get_running_loop().set_default_executor(workers())
        self._settings.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self._lock = lock(self._settings.lock)
        except BlockingIOError:
            raise SocketInUseError(str(self._settings.socket)) from None
        self._divide_cgroup()
        core = self._core = await self._begin(policy)
        core.drain.on_over = self.tell_to_stop
        core.life.on_change(self._manager.reached)
        self._adopt_listening(core.adoption.listening())
        public = self._listen(activation.CORE, self._settings.socket)
        fds = self._listen(activation.FDS, self._settings.fd_socket)
        self._inner = self._make_inner()
        grpc_socket = self._inner / "grpc.sock"
        check_path(grpc_socket)
        self._health = Health(core.life, core.audit, core.engines)
        self._server = await self._serve_inner(core, self._health, grpc_socket)
        core.kept.listening(activation.CORE, public)
        core.kept.listening(activation.FDS, fds)
        self._channels = FdChannels(
            core.clients, core.tickets, core.hand_out, core.may_leave, core.kept
        )
        core.on_client_end = self._channels.close_of
        for number, client, connection in core.adoption.channels():
            self._channels.adopt(number, client, connection)
        core.adoption.close()
        self._channels.open(fds)
        self._door = FrontDoor(core.clients, grpc_socket)
        core.clients.on_process_end = self._door.drop
        await self._health.begin()
        self._door.open(public)
        core.life.reach(Phase.SERVING)
        self._health.on_news = self._manager.health
        log.info("serving", socket=str(self._settings.socket))

    async def _begin(self, policy: Policy) -> Core:
        audit = AuditLog.open(
            self._settings.audit_directory,
            self._settings.audit_durability,
            self._settings.audit_file_events,
            self._settings.audit_keep_files,
        )
        try:
            records = self._find_keeper()
            core = Core(self._settings, audit, policy, Kept(self._keeper), self._cgroups)
            await core.begin(records)
        except BaseException:
            with suppress(AuditFailure):  # which is why it does not begin
                await asyncio.to_thread(audit.close)
            raise
        return core

    def _divide_cgroup(self) -> None:
        """Before there is any process but core's, as they come into its cgroup."""
        if self._given is None:
            log.info("engines have no cgroups: core was given none to divide")
            return
        try:
            self._cgroups.take(self._given)
        except OSError as error:
            log.error("engines have no cgroups", why=str(error))  # noqa: TRY400 - no defect

    def _find_keeper(self) -> dict[str, Record]:
        """What the keeper of an earlier core has; without `keep` it ends with this one. Nobody is served
        yet who could be kept waiting."""
        keeper = Keeper(self._settings.directory, self._settings.keep)
        check_path(self._settings.directory / SOCKET)
        records = keeper.find()
        if records or self._settings.keep:
            self._keeper = keeper
            keeper.start()
        return records

    def _make_inner(self) -> Path:
        """The directory of the inner socket, 0700; what a killed core left goes, as the lock is ours."""
        directory = self._settings.directory
        for left in directory.glob(f"{INNER}*"):
            shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=INNER, dir=directory))

    def _adopt_listening(self, adopted: dict[str, socket.socket]) -> None:
        """Sockets that an earlier core bound, unless the manager passed them, as it did then."""
        for name, listening in adopted.items():
            if name in self._passed:
                listening.close()
            else:
                self._passed[name] = listening
                self._adopted.add(name)

    def _listen(self, name: str, path: Path) -> socket.socket:
        """The socket that was passed, whose file is the manager's; else one of core's own."""
        if passed := self._passed.pop(name, None):
            activation.check(name, passed, path)
            if name in self._adopted:
                self._bound.append(path)
            return passed
        listening = listen(path, activation.KINDS[name], self._settings.socket_mode)
        self._bound.append(path)
        return listening

    async def _serve_inner(self, core: Core, health: Health, path: Path) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[LogContext(core), Errors(), Recording(core)],
            options=[("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION)],
        )
        core_pb2_grpc.add_CoreServiceServicer_to_server(CoreServicer(core), server)
        vm_session_pb2_grpc.add_VmSessionServiceServicer_to_server(VmSessionServicer(core), server)
        dataspace_pb2_grpc.add_DataspaceServiceServicer_to_server(DataspaceServicer(core), server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(
            AuditServicer(core, self.extra_fds), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health), server)
        reflection.enable_server_reflection((*SERVICES, HEALTH, reflection.SERVICE_NAME), server)
        server.add_insecure_port(f"unix:{quote(str(path))}")  # gRPC takes it for a URI
        await server.start()
        return server

    def read_policy_again(self) -> None:
        """Soon, one time after the other. What is wrong with it is logged, and the old one stays."""
        task = asyncio.get_running_loop().create_task(self._read_policy())
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read_policy(self) -> None:
        async with self._one_reading:
            with self._manager.reloading():
                try:
                    policy = await asyncio.to_thread(load, self._settings.policy, self._settings)
                except PolicyError as error:
                    log.error("policy stays as it was", why=str(error))  # noqa: TRY400 - no defect
                    return
                if self._core and not self._core.life.stopping:
                    self._core.heed(policy)
                    log.info("policy changed", file=str(self._settings.policy))

    def tell_to_hand_over(self) -> None:
        """End `until_told_to_stop`, of a signal that leaves everything to the next core if it may."""
        self._hands_over = bool(self._keeper and self._settings.keep)
        self._told_to_stop.set()

    def tell_to_stop(self) -> None:
        """End `until_told_to_stop`, of a signal or when core has drained."""
        self._told_to_stop.set()

    async def until_told_to_stop(self) -> None:
        """Return when it is time for `stop`."""
        await self._told_to_stop.wait()

    async def stop(self) -> None:
        """End all clients, then the sockets; nothing is left. Or leave all but the calls under way to
        the next core."""
        if self._keeper and self._leaves:
            await self._leave(self._keeper)
            return
        if self._door:
            self._door.stop_accepting()
        if self._health:
            await self._health.close()
        if self._core:
            await self._core.stop()
        if self._channels:
            self._channels.close()
        if self._server:
            await self._server.stop(STOP_GRACE)
        if self._door:
            self._door.close()
        if self._keeper:
            await self._keeper.end()
        for path in self._bound:
            with suppress(FileNotFoundError):
                path.unlink()
        if self._inner:
            shutil.rmtree(self._inner, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
        self._manager.close()
        log.info("stopped")

    @property
    def _leaves(self) -> bool:
        """Whether the next core goes on: a signal said so, or this one could not begin to serve."""
        phase = self._core.life.phase if self._core else Phase.STARTING
        if phase is Phase.STARTING:
            return bool(self._keeper and self._keeper.inherited)
        return self._hands_over and phase is Phase.SERVING

    async def _leave(self, keeper: Keeper) -> None:
        """The end of this process is no end of what the keeper has."""
        if self._door:
            self._door.stop_accepting()
        if self._health:
            await self._health.close()
        if self._server:
            await self._server.stop(STOP_GRACE)
        if self._core:
            await self._core.hand_over()
        keeper.close()
        self._manager.close()
        log.info("left everything to the next core")

    def extra_fds(self) -> int:
        """fds held for clients: memory, engines. Those of their leases are not counted, nor core's own:
        the socket where fd channels are opened, and the connection to its keeper."""
        assert self._core
        leases = self._core.clients.watched + len(self._channels or ())
        own = 1 + bool(self._keeper and self._keeper.connected)
        return take_census().total - own - leases


def lock(path: Path) -> int:
    """The lock of the one core that serves in a directory, as an fd: it ends with its process, however
    that ends, so the sockets that are found by who has it are stale. Raises BlockingIOError, OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def listen(path: Path, kind: socket.SocketKind, mode: int) -> socket.socket:
    """A listening socket at `path`, replacing a stale one. Raises OSError, which names the path."""
    check_path(path)
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    listening = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        old = os.umask(0o777 & ~mode)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(old)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    return listening


def check_path(path: Path) -> None:
    """Raises OSError for a path that no UNIX socket can have."""
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        why = f"the path of a socket has at most {SOCKET_PATH_LIMIT} bytes"
        raise OSError(errno.ENAMETOOLONG, why, os.fspath(path))
