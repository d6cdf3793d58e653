"""Request ids: one mutation for each, whoever asks how often, at a bounded price."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from vmsession.v1 import dataspace_pb2 as pb

from core_service import requests
from core_service.client import Client
from core_service.identity import Identity
from core_service.refusal import Refusal
from dataspace.quota import Account

Make = Callable[[], Awaitable[pb.CreateDataspaceResponse]]


@pytest.fixture
async def client() -> Client:
    """A client that nobody watches."""
    return Client(
        "clients/1", Identity(0, 0, 1, 1), Account("client", 0, 0), 60, lambda client, cause: None
    )


def request_of(number: int, size: int = 1) -> pb.CreateDataspaceRequest:
    return pb.CreateDataspaceRequest(request_id=str(number), size=size)


def answering(name: str) -> Make:
    async def make() -> pb.CreateDataspaceResponse:
        return pb.CreateDataspaceResponse(dataspace=pb.Dataspace(name=name))

    return make


async def test_two_at_once_are_one(client: Client) -> None:
    started = 0

    async def make() -> pb.CreateDataspaceResponse:
        nonlocal started
        started += 1
        await asyncio.sleep(0)
        return pb.CreateDataspaceResponse()

    await asyncio.gather(*(client.once(request_of(1), make) for _ in range(3)))
    assert started == 1


async def test_the_answer_of_a_cancelled_call_is_kept(client: Client) -> None:
    go = asyncio.Event()

    async def make() -> pb.CreateDataspaceResponse:
        await go.wait()
        return await answering("first")()

    call = asyncio.create_task(client.once(request_of(1), make))
    await asyncio.sleep(0)
    call.cancel()
    go.set()
    again = await client.once(request_of(1), answering("second"))
    assert again.dataspace.name == "first"


async def test_what_is_under_way_is_never_forgotten(client: Client) -> None:
    go = asyncio.Event()

    async def make() -> pb.CreateDataspaceResponse:
        await go.wait()
        return await answering("first")()

    first = asyncio.create_task(client.once(request_of(0), make))
    await asyncio.sleep(0)
    for number in range(1, requests.REMEMBERED + 2):
        await client.once(request_of(number), answering("other"))
    second = asyncio.create_task(client.once(request_of(0), answering("second")))
    go.set()
    assert (await first) == (await second)


async def test_a_failure_is_forgotten(client: Client) -> None:
    async def fail() -> pb.CreateDataspaceResponse:
        raise Refusal("OUT_OF_RAM", "none left")

    with pytest.raises(Refusal):
        await client.once(request_of(1), fail)
    assert (await client.once(request_of(1), answering("second"))).dataspace.name == "second"


async def test_large_answers_are_not_kept_for_long(client: Client) -> None:
    large = "x" * (1 << 20)
    for number in range(8):
        await client.once(request_of(number), answering(large))
    assert (await client.once(request_of(7), answering("again"))).dataspace.name == large
    assert (await client.once(request_of(0), answering("again"))).dataspace.name == "again"
    kept = [await client.once(request_of(number), answering("again")) for number in range(4, 8)]
    assert sum(answer.ByteSize() for answer in kept) < requests.REMEMBERED_BYTES
