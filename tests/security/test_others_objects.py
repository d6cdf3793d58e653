"""To everybody but its client an object does not exist: whatever method he asks by its name, he is
answered as for a name that never was.

The methods are those that core says it serves, and each string in their requests is a name or known to
be none: what is new is tested, or fails here until it is said what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from vmsession.v1 import audit_pb2, core_pb2, dataspace_pb2, vm_session_pb2

from tests.integration.running_core import RunningCore, Stubs
from tests.security.actor import ALICE, BOB, Actor

KNOWN: Final = (core_pb2, vm_session_pb2, dataspace_pb2, audit_pb2)
OURS: Final = "vmsession."
KINDS: Final = {
    "VmSessionService": "session",
    "DataspaceService": "dataspace",
    "AuditService": "dataspace",
}
"""What `name` is the name of, by service."""
NAMES: Final = {
    **{kind: kind for kind in ("session", "vcpu", "dataspace", "share")},
    "open": "vcpu",
    "subject": "dataspace",
}
"""Other fields that hold a name, and of what."""
NO_NAMES: Final = {
    *("label", "engine", "request_id", "path", "page_token", "kinds", "wanted"),
}
FILTERS: Final = {("ListRecords", "session"), ("ListEvents", "subject")}
"""What asks for less of what one sees anyway: the answer is empty."""
SEEN: Final = {"ListVcpus", "GetHistory", "ListRecords", "ListEvents"}
"""Methods that show what one may see, not only what is one's own (test_sight.py)."""


@dataclass(frozen=True)
class Place:
    """Where a name goes in a request."""

    method: MethodDescriptor
    field: FieldDescriptor
    kind: str

    @property
    def path(self) -> str:
        """The method, as gRPC names it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    def request(self, name: str, own: dict[str, str]) -> Any:
        """Which is right but for this name."""
        made: Any = GetMessageClass(self.method.input_type)()
        for field in self.method.input_type.fields:
            if kind := kind_of(self.method, field):
                oneof = field.containing_oneof
                if field is self.field or oneof is None:
                    setattr(made, field.name, name if field is self.field else own[kind])
            elif field.name == "transport":
                made.transport = vm_session_pb2.TRANSPORT_STREAM
        return made


def kind_of(method: MethodDescriptor, field: FieldDescriptor) -> str | None:
    """What a field names; None where it names nothing. A string that is not known fails."""
    if field.type != FieldDescriptor.TYPE_STRING or field.name in NO_NAMES:
        return None
    if field.name == "name":
        return KINDS[method.containing_service.name]
    return NAMES[field.name]


def must_hold_no_names(message: Descriptor, seen: set[str]) -> None:
    """What is deeper in a request than its fields."""
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            assert field.name in NO_NAMES, f"{field.full_name}: is it a name?"
        if field.message_type and field.full_name not in seen:
            must_hold_no_names(field.message_type, seen | {field.full_name})


def methods(core: RunningCore) -> Iterator[MethodDescriptor]:
    """All that core serves, as it says itself."""
    with grpc.insecure_channel(f"unix:{core.socket}") as channel:
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (told,) = stub.ServerReflectionInfo(iter([asked]), timeout=10)
    services = [each.name for each in told.list_services_response.service]
    ours = [name for name in services if name.startswith(OURS)]
    assert len(ours) == len(KNOWN)
    for name in ours:
        yield from Default().FindServiceByName(name).methods


def places(core: RunningCore) -> list[Place]:
    """Every name in every request."""
    found = []
    for method in methods(core):
        for field in method.input_type.fields:
            if field.message_type:
                must_hold_no_names(field.message_type, set())
            elif kind := kind_of(method, field):
                found.append(Place(method, field, kind))
    return found


def never_was(name: str) -> str:
    """A name of the same form, and of the same core."""
    session, separator, index = name.partition("/vcpus/")
    return f"{session[:-1]}zzzz{separator}{index}"


def answer(actor: Actor, place: Place, name: str, own: dict[str, str]) -> list[Any]:
    """What he is told, without the name; a revision of the log moves on."""
    request = place.request(name, own).SerializeToString().hex()
    told, *more = actor("call", place.path, place.method.client_streaming, request)
    if told == "OK":
        message = GetMessageClass(place.method.output_type)()
        message.ParseFromString(bytes.fromhex(more[0]))
        if "revision" in message.DESCRIPTOR.fields_by_name:
            message.ClearField("revision")
        return [told, str(message)]
    text, numbers = more
    said = {key: without(name, value) for key, value in numbers.items()}
    return [told, without(name, text), said]


def without(name: str, text: str) -> str:
    """A text that does not tell of which name it is. Of a vCPU, its session is not found first."""
    return text.replace(name.partition("/vcpus/")[0], "NAME")


@pytest.mark.parametrize("who", [BOB, ALICE, 0], ids=["another user", "same user", "operator"])
def test_every_method_knows_nothing_of_anothers_objects(
    core: RunningCore, actor: Callable[[int], Actor], who: int
) -> None:
    alice, asking = actor(ALICE), actor(who)
    theirs, own = alice("own"), asking("own")
    found = places(core)
    assert {place.kind for place in found} == {"session", "vcpu", "dataspace", "share"}
    asked = set()
    for place in found:
        if who != BOB and place.method.name in SEEN:
            continue
        for kind, name in theirs.items():
            told = answer(asking, place, name, own)
            assert told == answer(asking, place, never_was(name), own), (place.path, name)
            if (place.method.name, place.field.name) in FILTERS:
                assert told == ["OK", ""], place.path
            elif kind == place.kind:
                assert told[0] == "NOT_FOUND", (place.path, told)
                asked.add(place.path)
            else:
                assert told[0] != "OK", (place.path, told)
    assert len(asked) >= 25
    assert alice("dataspaces") == [theirs["dataspace"]]
    stubs = Stubs(core.socket)
    (session,) = [
        each
        for each in stubs.vm.ListSessions(vm_session_pb2.ListSessionsRequest()).sessions
        if each.name == theirs["session"]
    ]
    assert (session.vcpus, session.attachments) == (1, 0)
    stubs.close()


@pytest.mark.parametrize("who", [BOB, ALICE, 0], ids=["another user", "same user", "operator"])
def test_no_fd_of_anothers_memory(actor: Callable[[int], Actor], who: int) -> None:
    alice, asking = actor(ALICE), actor(who)
    theirs = alice("own")
    assert asking("present", asking("ticket")) == "ok"
    for name in theirs.values():
        told = asking("collect", name)
        assert told.startswith("error NOT_FOUND ")
        never = never_was(name)
        assert without(name, told) == without(never, asking("collect", never))
