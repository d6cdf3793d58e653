"""The front door: connections that come and go in every state."""

from __future__ import annotations

import os
import socket

from vmsession.v1 import core_pb2, dataspace_pb2

from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually


def raw_connection(core: RunningCore) -> socket.socket:
    """A connection that speaks no gRPC."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.fspath(core.socket))
    connection.settimeout(10)
    return connection


def speaks_first(connection: socket.socket) -> bool:
    """Whether gRPC is behind it: an HTTP/2 server sends its settings unasked."""
    try:
        return connection.recv(1) != b""
    except ConnectionResetError:
        return False


def test_the_kernel_tells_who_calls(stubs: Stubs) -> None:
    client = stubs.core.GetInfo(core_pb2.GetInfoRequest()).client
    assert (client.uid, client.gid, client.pid) == (os.geteuid(), os.getegid(), os.getpid())


def test_connections_that_leave_at_once(core: RunningCore, stubs: Stubs) -> None:
    for _ in range(50):
        raw_connection(core).close()
    assert stubs.totals().clients == 1


def test_garbage_is_answered_by_the_end_of_the_connection(core: RunningCore, stubs: Stubs) -> None:
    with raw_connection(core) as connection:
        connection.sendall(b"\x00garbage\xff" * 1000)
        while connection.recv(4096):
            pass
    assert stubs.totals().clients == 1


def test_a_client_that_closes_in_the_middle_of_an_answer(core: RunningCore, stubs: Stubs) -> None:
    created = stubs.dataspaces.CreateDataspace(dataspace_pb2.CreateDataspaceRequest(size=1 << 20))
    request = dataspace_pb2.ReadDataspaceRequest(name=created.dataspace.name, size=1 << 20)
    for _ in range(20):
        other = Stubs(core.socket)
        calls = [other.dataspaces.ReadDataspace.future(request) for _ in range(4)]
        calls[0].result(10)
        other.close()
    assert stubs.dataspaces.ReadDataspace(request).data == bytes(1 << 20)


def test_too_many_connections_of_one_user(core: RunningCore, stubs: Stubs) -> None:
    assert stubs.totals().clients == 1  # one connection of ours is open
    connections = [raw_connection(core) for _ in range(520)]
    let_in = [speaks_first(connection) for connection in connections]
    assert sum(let_in) == 511
    assert core.log().count("too many connections") == 1  # nobody can fill the log with it
    for connection in connections:
        connection.close()
    eventually(lambda: stubs.totals().clients == 1)
