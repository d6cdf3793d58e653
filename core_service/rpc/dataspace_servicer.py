"""DataspaceService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc.aio
from vmsession.v1 import dataspace_pb2 as pb
from vmsession.v1 import dataspace_pb2_grpc

from core_service.dataspaces import holder
from core_service.refusal import invalid
from core_service.rpc import convert
from core_service.rpc.paging import page

if TYPE_CHECKING:
    from core_service.client import Client
    from core_service.core import Core
    from core_service.dataspaces import Dataspace

Context = grpc.aio.ServicerContext[Any, Any]

TRANSFER_LIMIT: Final = 1 << 20


class DataspaceServicer(dataspace_pb2_grpc.DataspaceServiceServicer):
    """Memory objects of the calling client."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _client(self, context: Context) -> Client:
        return self._core.clients.of(context.peer())

    def _message(self, dataspace: Dataspace) -> pb.Dataspace:
        return convert.dataspace(dataspace, self._core.ledger.record(dataspace.name))

    async def CreateDataspace(
        self, request: pb.CreateDataspaceRequest, context: Context
    ) -> pb.CreateDataspaceResponse:
        client = self._client(context)

        async def make() -> pb.CreateDataspaceResponse:
            name = self._core.names.new("dataspaces")
            created = self._core.dataspaces.create(client, name, request.size)
            return pb.CreateDataspaceResponse(dataspace=self._message(created))

        return await client.once(request, make)

    async def CreateRom(
        self, request: pb.CreateRomRequest, context: Context
    ) -> pb.CreateRomResponse:
        client = self._client(context)

        async def make() -> pb.CreateRomResponse:
            created = await self._core.roms.create(client, request.path)
            return pb.CreateRomResponse(dataspace=self._message(created))

        return await client.once(request, make)

    async def SealDataspace(
        self, request: pb.SealDataspaceRequest, context: Context
    ) -> pb.SealDataspaceResponse:
        client = self._client(context)

        async def make() -> pb.SealDataspaceResponse:
            sealed = await self._core.dataspaces.seal(client, request.name)
            return pb.SealDataspaceResponse(dataspace=self._message(sealed))

        return await client.once(request, make)

    async def ShareDataspace(
        self, request: pb.ShareDataspaceRequest, context: Context
    ) -> pb.ShareDataspaceResponse:
        client = self._client(context)

        async def make() -> pb.ShareDataspaceResponse:
            share = self._core.shares.offer(
                client,
                self._core.dataspaces.of(client, request.dataspace),
                request.uid,
                request.pid,
                request.offset,
                request.size,
                not request.read_only,
            )
            return pb.ShareDataspaceResponse(share=convert.share(share, client))

        return await client.once(request, make)

    async def AcceptShare(
        self, request: pb.AcceptShareRequest, context: Context
    ) -> pb.AcceptShareResponse:
        client = self._client(context)

        async def make() -> pb.AcceptShareResponse:
            accepted = self._core.shares.accept(client, request.share)
            return pb.AcceptShareResponse(dataspace=self._message(accepted))

        return await client.once(request, make)

    async def RevokeShare(
        self, request: pb.RevokeShareRequest, context: Context
    ) -> pb.RevokeShareResponse:
        client = self._client(context)

        async def make() -> pb.RevokeShareResponse:
            return pb.RevokeShareResponse(
                held=await self._core.shares.revoke(client, request.share)
            )

        return await client.once(request, make)

    async def ListShares(
        self, request: pb.ListSharesRequest, context: Context
    ) -> pb.ListSharesResponse:
        client = self._client(context)
        chosen, token = page(
            self._core.shares.visible_to(client),
            lambda share: share.name,
            request.page_size,
            request.page_token,
            lambda token: self._core.names.could_be("shares", token),
        )
        return pb.ListSharesResponse(
            shares=[convert.share(share, client) for share in chosen], next_page_token=token
        )

    async def GetDataspace(
        self, request: pb.GetDataspaceRequest, context: Context
    ) -> pb.GetDataspaceResponse:
        dataspace = self._core.dataspaces.of(self._client(context), request.name)
        return pb.GetDataspaceResponse(dataspace=self._message(dataspace))

    async def ListDataspaces(
        self, request: pb.ListDataspacesRequest, context: Context
    ) -> pb.ListDataspacesResponse:
        chosen, token = page(
            [each for each in self._client(context).dataspaces.values() if not each.ending],
            lambda dataspace: dataspace.name,
            request.page_size,
            request.page_token,
            lambda token: self._core.names.could_be("dataspaces", token),
        )
        return pb.ListDataspacesResponse(
            dataspaces=[self._message(dataspace) for dataspace in chosen],
            next_page_token=token,
            revision=self._core.ledger.revision,
        )

    async def FreeDataspace(
        self, request: pb.FreeDataspaceRequest, context: Context
    ) -> pb.FreeDataspaceResponse:
        client = self._client(context)

        async def make() -> pb.FreeDataspaceResponse:
            dataspace = self._core.dataspaces.of(client, request.name)
            actor = holder(client)
            held = await self._core.dataspaces.end(dataspace, "freed by its owner", actor)
            return pb.FreeDataspaceResponse(held=held)

        return await client.once(request, make)

    async def ReadDataspace(
        self, request: pb.ReadDataspaceRequest, context: Context
    ) -> pb.ReadDataspaceResponse:
        client = self._client(context)
        _check_transfer(request.size)
        # until the client took it: core must not keep what somebody asks for and does not read
        await client.transfers.acquire()
        context.add_done_callback(lambda _: client.transfers.release())  # type: ignore[arg-type] # the stubs' type cannot be called
        dataspace = self._core.dataspaces.of(
            client, request.name
        )  # not before: it may end meanwhile
        return pb.ReadDataspaceResponse(data=dataspace.memory.read(request.offset, request.size))

    async def WriteDataspace(
        self, request: pb.WriteDataspaceRequest, context: Context
    ) -> pb.WriteDataspaceResponse:
        client = self._client(context)
        dataspace = self._core.dataspaces.of(client, request.name)
        _check_transfer(len(request.data))

        async def make() -> None:
            dataspace.memory.write(request.offset, request.data)
            await self._core.dataspaces.written(dataspace, request.offset, len(request.data))

        await client.whole(make)
        return pb.WriteDataspaceResponse()


def _check_transfer(size: int) -> None:
    if size > TRANSFER_LIMIT:
        raise invalid("size", size, f"at most {TRANSFER_LIMIT} bytes at once")
