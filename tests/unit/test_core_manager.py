"""What the service manager is told (sd_notify(3))."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from core_service.life import Phase
from core_service.manager import Manager


class Listener:
    """A service manager's socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.settimeout(5)

    def next(self) -> dict[str, str]:
        """The next message, by field."""
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def nothing(self) -> bool:
        """Whether no message waits."""
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return True
        return False


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    """One at a path, one in the abstract name space."""
    abstract = f"@vmsession-test-{secrets.token_hex(8)}"
    listener = Listener(str(tmp_path / "notify") if request.param == "path" else abstract)
    yield listener
    listener.socket.close()


async def test_the_life_of_core_is_told(listener: Listener) -> None:
    manager = Manager.of({"NOTIFY_SOCKET": listener.address})
    pid = str(os.getpid())
    manager.reached(Phase.SERVING)
    assert listener.next() == {"READY": "1", "STATUS": "serving", "MAINPID": pid}
    manager.health("no engine works")
    assert listener.next() == {"STATUS": "serving, but no engine works"}
    manager.health("")
    assert listener.next() == {"STATUS": "serving"}
    manager.reached(Phase.DRAINING)
    assert listener.next() == {"STATUS": "draining", "MAINPID": pid}
    manager.reached(Phase.STOPPING)
    assert listener.next() == {"STOPPING": "1", "STATUS": "stopping", "MAINPID": pid}
    manager.close()
    manager.close()
    manager.health("")
    assert listener.nothing()


async def test_a_reload_is_told_with_its_time(listener: Listener) -> None:
    manager = Manager.of({"NOTIFY_SOCKET": listener.address})
    before = time.monotonic_ns() // 1000
    with suppress(ValueError), manager.reloading():
        message = listener.next()
        assert message.pop("RELOADING") == "1"
        assert before <= int(message.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
        assert not message
        raise ValueError("a bad file")
    assert listener.next() == {"READY": "1"}
    manager.close()


@pytest.mark.parametrize("listener", ["path"], indirect=True)
async def test_the_event_loop_says_that_it_is_alive(listener: Listener) -> None:
    environment = {
        "NOTIFY_SOCKET": listener.address,
        "WATCHDOG_USEC": "40000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    manager = Manager.of(environment)
    assert environment == {}
    manager.reached(Phase.SERVING)
    assert listener.next()["READY"] == "1"
    for _ in range(3):
        assert await asyncio.to_thread(listener.next) == {"WATCHDOG": "1"}
    time.sleep(0.1)  # noqa: ASYNC251 - the loop is stuck, as far as anybody can tell
    assert listener.nothing()
    manager.close()


@pytest.mark.parametrize("listener", ["path"], indirect=True)
@pytest.mark.parametrize(
    "watchdog", [{"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}]
)
async def test_a_watchdog_that_is_not_ours(listener: Listener, watchdog: dict[str, str]) -> None:
    manager = Manager.of({"NOTIFY_SOCKET": listener.address, **watchdog})
    manager.reached(Phase.SERVING)
    assert listener.next()["READY"] == "1"
    await asyncio.sleep(0.01)
    assert listener.nothing()
    manager.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1", "/nowhere/notify", "@nobody-is-here"])
async def test_nobody_to_tell(address: str) -> None:
    manager = Manager.of({"NOTIFY_SOCKET": address})
    manager.reached(Phase.SERVING)
    manager.close()


async def test_a_manager_that_does_not_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "notify"))
    manager = Manager(listener.address)
    for _ in range(5000):
        manager.health("")
    manager.close()
    listener.socket.close()


async def test_a_message_has_the_fields_it_should_and_no_others(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "notify"))
    manager = Manager(listener.address)
    manager.health("x\nMAINPID=1")
    assert listener.next() == {"STATUS": "serving, but x MAINPID=1"}
    manager.close()
    listener.socket.close()
