"""Clients that die at random instants: core ends where it began."""

from __future__ import annotations

import random
import select
import subprocess
import sys
from pathlib import Path

import pytest
from vmsession.v1 import audit_pb2

from tests.integration.engines import on_every_engine
from tests.integration.running_core import RunningCore, Stubs
from tests.integration.waiting import eventually

ROOT = Path(__file__).parents[2]
SEED = 20261122

LIFE = """
import sys
from tests.integration.engines import on_every_engine
from tests.integration.running_core import become_other_user
from vmm_client import connect
become_other_user()
print("begin", flush=True)
while True:
    with connect(sys.argv[1]) as core, core.create_ram(1 << 20) as ram:
        with core.create_session(sys.argv[2]) as session:
            session.attach(ram, gpa=0)
            session.attach(ram, gpa=0x100000, size=0x1000)
            session.detach(0x4000, 0x3000)
            ram.write(0x1000, bytes.fromhex("40 e642 ebfb"))
            vcpu = session.create_vcpu()
            for count, exit_ in enumerate(vcpu.exits()):
                if count == 0:
                    code = vcpu.registers.cs._replace(selector=0, base=0)
                    vcpu.registers.update({"cs": code, "rip": 0x1000})
                elif count == 50:
                    break
"""


@on_every_engine
def test_lives(core: RunningCore, stubs: Stubs, engine: str) -> None:
    live(core, stubs, engine, lives=6)


@pytest.mark.soak
@on_every_engine
def test_many_lives(core: RunningCore, stubs: Stubs, engine: str) -> None:
    live(core, stubs, engine, lives=500)


def live(core: RunningCore, stubs: Stubs, engine: str, lives: int) -> None:
    """Start clients, two at a time, and kill each within its first 0.3 s of work."""
    chance = random.Random(SEED)
    for _ in range(lives // 2):
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", LIFE, core.socket, engine],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        for client in clients:
            assert client.stdout
            assert client.stdout.readline() == b"begin\n"
        for client in clients:
            select.select([], [], [], chance.uniform(0, 0.3))  # the instant is what is random
            client.kill()
            client.communicate()
    eventually(lambda: gone(stubs), lambda: f"left: {stubs.totals()}")
    totals = stubs.totals()
    assert totals.created == totals.freed > 0


def gone(stubs: Stubs) -> bool:
    """Nothing of anybody is left."""
    totals = stubs.totals()
    left = (
        totals.live,
        totals.live_bytes,
        totals.held_bytes,
        totals.sessions,
        totals.engine_processes,
        totals.extra_fds,
    )
    records = stubs.audit.ListRecords(audit_pb2.ListRecordsRequest(alive_only=True)).records
    return left == (0, 0, 0, 0, 0, 0) and not records
