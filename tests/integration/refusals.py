"""What a refusal says."""

from __future__ import annotations

from typing import cast

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo that every refusal carries."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    status = rpc_status.from_call(cast("grpc.Call", error))  # of which it has the methods
    assert status is not None, error
    assert status.code == error.code().value[0]
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert info.domain == "vmsession.v1"
    return info


def reason_of(error: grpc.RpcError) -> str:
    """Its reason."""
    return error_info(error).reason
