"""A VMM whose threads overwrite its vCPU pages, and now and then its guest's memory, while an engine
works on them, and which asks core about those vCPUs meanwhile.

    python -m tests.hostile.page_attacker SOCKET UID SEED SECONDS ENGINE LIBRARY

LIBRARY is the scribbler's. See `attackers.py`. An engine may not die of it, and once the writing is over
it must obey.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc
from vmsession.v1 import vcpu_pb2, vm_session_pb2

from core_service.refusal import CODES
from dataspace.registers import SCALARS
from dataspace.vcpu_page import HALF_BYTES, VMM_HALF
from tests.hostile.attackers import Findings
from tests.hostile.machine import PATIENCE, FdChannel, Machine
from tests.hostile.messages import EDGES, Forge
from tests.hostile.scribbler import Scribbler
from tests.integration.refusals import reason_of
from tests.integration.running_core import Stubs, become_other_user

LIFE_SECONDS: Final = (0.1, 0.8)  # of a machine
OBEYS_SECONDS: Final = 10.0
CALL_SECONDS: Final = 20.0
VCPUS: Final = {"kvm": 2, "soft": 2, "x86emu": 1}
SPOILS_MEMORY: Final = 0.3
NICE: Final = 5  # so that the engines run, too, on two processors
FORGED: Final = 0.3  # of the requests: anything in each field
GUESTS: Final = (  # real mode; DS is where no memory is
    "e460 e680 a00000 a30400 ebf4",  # in, out, read and write of a device, again
    "b90010 ba6000 2e6c 6e ebf8",  # strings of ports
    "b90001 be0000 bf0000 f3a5 ebf5",  # a string between a device and memory
    "f4 ebfd",
    "ebfe",
    "fb f4 fa cd20 ebf9",
    "0f32 0f30 0fa2 ebf8",  # MSRs, CPUID
)


class Attacker:
    """Owns a connection, and what it found."""

    def __init__(self, core: Path, chance: Random, engine: str, library: Path) -> None:
        self.findings = Findings()
        self._chance = chance
        self._engine = engine
        self._library = ctypes.CDLL(os.fspath(library))
        self._forge = Forge(chance, [])
        self._stubs = Stubs(core)
        self._fds = FdChannel(self._stubs, core)

    def attack(self, seconds: float) -> None:
        """So long; the first machine is whole in any case."""
        end = time.monotonic() + seconds
        while not self.findings.outcomes["machines"] or time.monotonic() < end:
            self._life()

    def _life(self) -> None:
        """One machine, from its first to its last."""
        chance = self._chance
        guest = bytes.fromhex(chance.choice(GUESTS)) + chance.randbytes(64)
        machine = Machine(self._stubs, self._engine, guest)
        self.findings.outcomes["machines"] += 1
        vcpus = [machine.add_vcpu() for _ in range(chance.randint(1, VCPUS[self._engine]))]
        for vcpu in vcpus:
            machine.begin(vcpu)
        self._scribble(machine)
        if self._alive(machine):
            for vcpu in vcpus:
                self._must_obey(vcpu)
            machine.end()
        else:
            machine.free()

    def _scribble(self, machine: Machine) -> None:
        pages = [self._collected(vcpu) for vcpu in machine.vcpus]
        memory = self._collected(machine.memory)
        scribblers = [Scribbler(self._library, fd, self._chance, page=True) for fd in pages]
        if self._chance.random() < SPOILS_MEMORY:
            scribblers.append(Scribbler(self._library, memory, self._chance, page=False))
        try:
            end = time.monotonic() + self._chance.uniform(*LIFE_SECONDS)
            while time.monotonic() < end:
                self._call(machine)
        finally:
            for scribbler in scribblers:
                scribbler.stop()
        for scribbler in scribblers:
            self.findings.outcomes.update(scribbler.counts)
        for fd in pages:
            os.pwrite(fd, bytes(HALF_BYTES), VMM_HALF)
        for fd in (*pages, memory):
            os.close(fd)

    def _collected(self, name: str) -> int:
        fd = self._fds.collect(name)
        assert fd is not None, f"no fd of {name}"
        return fd

    def _call(self, machine: Machine) -> None:
        """Core is asked about a vCPU whose page is being spoiled."""
        vm, chance = self._stubs.vm, self._chance
        call, request = chance.choice(
            (
                (vm.Run, vm_session_pb2.RunRequest),
                (vm.Pause, vm_session_pb2.PauseRequest),
                (vm.RequestWindow, vm_session_pb2.RequestWindowRequest),
                (vm.GetVcpuState, vm_session_pb2.GetVcpuStateRequest),
                (vm.UpdateVcpuState, vm_session_pb2.UpdateVcpuStateRequest),
                (vm.GetVcpuCpuid, vm_session_pb2.GetVcpuCpuidRequest),
            )
        )
        message: Any = request()
        if chance.random() < FORGED:
            message = self._forge.message(request.DESCRIPTOR)
        elif request is vm_session_pb2.UpdateVcpuStateRequest:
            message.state.CopyFrom(self._registers())
        elif request is vm_session_pb2.RunRequest:
            message.reply.state.CopyFrom(self._registers())
        message.vcpu = chance.choice(machine.vcpus)
        self._counted(call, message)
        if chance.random() < 0.2:
            self._counted(vm.ListVcpus, vm_session_pb2.ListVcpusRequest(session=machine.session))
        if chance.random() < 0.05:
            part = vm_session_pb2.DetachRequest(session=machine.session, gpa=0x8000, size=0x1000)
            self._counted(vm.Detach, part)

    def _registers(self) -> vcpu_pb2.VcpuState:
        """Some, with values at the edges of what there can be."""
        chance = self._chance
        names = chance.sample(SCALARS, chance.randint(0, 3))
        state = vcpu_pb2.VcpuState()
        for name in names:
            setattr(state, name, chance.choice(EDGES))
        return state

    def _counted(self, call: Any, request: Any) -> str:
        """The outcome; what core must not answer is wrong."""
        outcome = "OK"
        try:
            call(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            outcome = _refusal(error)
            if outcome not in CODES or outcome == "INTERNAL":
                self.findings.wrong.append(f"{type(request).__name__}: {outcome} {error}")
        self.findings.outcomes[outcome] += 1
        return outcome

    def _alive(self, machine: Machine) -> bool:
        request = vm_session_pb2.GetSessionRequest(name=machine.session)
        try:
            self._stubs.vm.GetSession(request, timeout=PATIENCE)
        except grpc.RpcError as error:
            self.findings.wrong.append(f"the engine died: {error}")
            return False
        return True

    def _must_obey(self, vcpu: str) -> None:
        """By calls alone the vCPU comes to a boundary, where it has a state."""
        end = time.monotonic() + OBEYS_SECONDS
        while time.monotonic() < end:
            state = vm_session_pb2.GetVcpuStateRequest(vcpu=vcpu, wanted=["rip"])
            outcome = self._counted(self._stubs.vm.GetVcpuState, state)
            if outcome == "OK":
                return
            if outcome == "MID_INSTRUCTION":
                reply = vcpu_pb2.Reply(complete=True)
                self._counted(self._stubs.vm.Run, vm_session_pb2.RunRequest(vcpu=vcpu, reply=reply))
            else:
                self._counted(self._stubs.vm.Pause, vm_session_pb2.PauseRequest(vcpu=vcpu))
        self.findings.wrong.append(f"{vcpu} does not come to a boundary: {outcome}")


def _refusal(error: grpc.RpcError) -> str:
    try:
        return reason_of(error)
    except AssertionError:
        return str(error)


def main() -> None:
    """The process itself."""
    socket, uid, seed, seconds, engine, library = sys.argv[1:]
    become_other_user(int(uid))
    os.nice(NICE)
    attacker = Attacker(Path(socket), Random(seed), engine, Path(library))
    attacker.attack(float(seconds))
    findings = attacker.findings
    findings.outcomes = Counter(
        {f"{engine}: {name}": count for name, count in findings.outcomes.items() if count}
    )
    findings.tell()


if __name__ == "__main__":
    main()
