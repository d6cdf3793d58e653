"""What an operator can set on the command line, and the defaults of policy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from core_service.audit.store import Durability
from core_service.audit.writer import FILE_EVENTS

SYSTEM = Path("/run/vmsession")
GIB = 1 << 30
CAPABILITIES = 1_000_000
CLIENT_CAPABILITIES = 65_536


def capabilities_within(descriptors: int) -> tuple[int, int]:
    """The capabilities of core and of one client. Most are an fd of core's, so a quarter of the fds that
    core may have is left for connections and engines, and no client can have all the rest."""
    core = min(CAPABILITIES, descriptors * 3 // 4)
    return core, min(CLIENT_CAPABILITIES, core // 4)


def default_directory() -> Path:
    """Where the sockets live: /run/vmsession for root, the user's runtime directory otherwise."""
    if os.geteuid() == 0:
        return SYSTEM
    return Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")) / "vmsession"


def running_directory() -> Path:
    """Where the user's own core serves, if one does, else the system's."""
    own = default_directory()
    return own if os.access(own / "core.sock", os.F_OK) else SYSTEM


def default_audit_directory() -> Path:
    """Where the audit log is: /var/lib/vmsession for root, the user's state directory otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/vmsession/audit")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "vmsession" / "audit"


@dataclass(frozen=True, slots=True)
class Settings:
    """Paths and limits. RAM in bytes, times in seconds. The limits of clients and users are those where
    policy does not say more. Virtual machines go on for `keep` while no core runs. The newest
    `audit_keep_files` files of the audit log are kept, 0 keeps all."""

    directory: Path = field(default_factory=default_directory)
    socket_mode: int = 0o660
    ram: int = 64 * GIB
    capabilities: int = CAPABILITIES
    client_ram: int = 16 * GIB
    client_capabilities: int = CLIENT_CAPABILITIES
    connections_per_user: int = 512
    sessions: int = 65_536
    sessions_per_user: int = 256
    grace: float = 5.0
    keep_alive_interval: float = 5.0
    ticket_life: float = 10.0
    engine_start_limit: float = 10.0
    engine_stop_limit: float = 5.0
    history: int = 10_000
    policy: Path | None = None
    keep: float = 0.0
    audit_directory: Path = field(default_factory=default_audit_directory)
    audit_durability: Durability = "process"
    audit_file_events: int = FILE_EVENTS
    audit_keep_files: int = 0

    @property
    def socket(self) -> Path:
        """The public socket, for gRPC."""
        return self.directory / "core.sock"

    @property
    def fd_socket(self) -> Path:
        """The fd channel's socket."""
        return self.directory / "fds.sock"

    @property
    def lock(self) -> Path:
        """Locked by the core that serves here."""
        return self.directory / "core.lock"
