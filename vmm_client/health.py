"""What serves, as core tells anybody who can connect (grpc.health.v1). Needs no lease."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from vmsession.v1 import audit_pb2, core_pb2, dataspace_pb2, vm_session_pb2

from vmm_client.core_socket import check_reachable, socket_path
from vmm_client.rpc import Rpc

WHOLE: Final = "core"
SERVICES: Final = {
    descriptor.name: descriptor.full_name
    for descriptor in (
        core_pb2.DESCRIPTOR.services_by_name["CoreService"],
        vm_session_pb2.DESCRIPTOR.services_by_name["VmSessionService"],
        dataspace_pb2.DESCRIPTOR.services_by_name["DataspaceService"],
        audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
    )
}
SECONDS: Final = 5.0


def serving(path: str | None = None) -> dict[str, bool]:
    """Whether core as a whole (`WHOLE`) and each of its services serve, of the core at `path` or where
    `socket_path` finds one. Raises CoreUnavailable."""
    where = str(Path(path or socket_path()).absolute())
    check_reachable(where)
    with closing(Rpc(where)) as rpc:
        check = HealthStub(rpc.channel).Check  # type: ignore[attr-defined]
        return {
            name: rpc.call(check, HealthCheckRequest(service=service), SECONDS).status
            == HealthCheckResponse.SERVING
            for name, service in {WHOLE: "", **SERVICES}.items()
        }
