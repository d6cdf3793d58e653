"""The VMM's library: a connection to core, sessions, vCPUs and their exits, guest memory.

A VMM is a plain, unprivileged program that owns all exit handling:

    with connect() as core, core.create_session() as session, core.create_ram(0x10000) as ram:
        session.attach(ram, gpa=0)
        for exit in session.create_vcpu().exits():
            ...

The calls block. A vCPU is served by one thread at a time; everything else may be called from any
thread. No gRPC error leaves the library: see `vmm_client.errors`.
"""

from dataspace.registers import Segment
from dataspace.vcpu_page import Activity, ExitFlag, Injection, InjectType, Reason
from vmm_client.breakpoints import Breakpoint, BreakpointKind
from vmm_client.connection import Connection, connect
from vmm_client.cpuid import CpuidLeaf
from vmm_client.entrypoint import Entrypoint, serve
from vmm_client.errors import VmsessionError
from vmm_client.exits import Exit
from vmm_client.memory import GuestMemory
from vmm_client.msr import MsrRange
from vmm_client.ram import Ram
from vmm_client.registers import Registers
from vmm_client.session import Session
from vmm_client.share import Share
from vmm_client.vcpu import Vcpu

__all__ = [
    "Activity",
    "Breakpoint",
    "BreakpointKind",
    "Connection",
    "CpuidLeaf",
    "Entrypoint",
    "Exit",
    "ExitFlag",
    "GuestMemory",
    "InjectType",
    "Injection",
    "MsrRange",
    "Ram",
    "Reason",
    "Registers",
    "Segment",
    "Session",
    "Share",
    "Vcpu",
    "VmsessionError",
    "connect",
    "serve",
]
