"""`make demo`: three VMMs on one private core, one of them killed; then the audit of every dataspace.

Each VMM is a process of its own, under a user of its own when the demo is started by root. KERNEL
and INITRD in the environment name other images than Debian's.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmsession.v1.audit_pb2 import GetTotalsResponse

from examples.tiny_vmm import main as tiny_vmm
from vmm_client.boards.pc import Ending
from vmm_client.boot.entry import ImageError
from vmm_client.boot.images import ImagesError, default_cache, obtain
from vmm_client.boot.initramfs import DEMO, build
from vmm_client.cli.dataspaces import dataspaces
from vmm_client.connection import connect
from vmm_client.console import write
from vmm_client.doctor.select import Need, select_engine
from vmm_client.errors import VmsessionError
from vmm_client.linux import LinuxImage, LinuxMachine

MEMORY: Final = 256 << 20
USERS: Final = {"linux": 64001, "tiny": 64002, "victim": 64003}
SETTLING_SECONDS: Final = 10.0
ENDLESS: Final = bytes.fromhex("40 e642 ebfb")  # loop: inc ax; out 0x42,al; jmp loop


# -- the VMMs


def linux(socket: str) -> None:
    """Boots Linux; its script says what it found, works, sleeps, and powers the machine off."""
    kernel, initrd = os.environ["KERNEL"], os.environ.get("INITRD")
    image = LinuxImage(Path(kernel).read_bytes(), Path(initrd).read_bytes() if initrd else b"")
    become("linux")
    with connect(socket) as core:
        engine = select_engine(core, Need.STOCK_KERNEL)
        print(f"booting {Path(kernel).name} on engine {engine}", flush=True)
        start = time.monotonic()
        with LinuxMachine(core, engine, image, MEMORY, write) as machine:
            ending = machine.run()
        print(f"{ending.value} after {time.monotonic() - start:.1f} s", flush=True)
        if ending is not Ending.POWER_OFF:
            sys.exit(1)


def tiny(socket: str) -> None:
    """The example of the README."""
    become("tiny")
    tiny_vmm(socket)


def victim(socket: str) -> None:
    """Serves exits until it is killed."""
    become("victim")
    with connect(socket) as core, core.create_ram(64 << 10) as ram:
        engine = select_engine(core, Need.REAL_MODE)
        with core.create_session(engine, label="victim") as session:
            session.attach(ram, gpa=0)
            session.memory.write(0x1000, ENDLESS)
            vcpu = session.create_vcpu()
            for count, exit_ in enumerate(vcpu.exits()):
                if count == 0:
                    code = vcpu.registers.cs._replace(selector=0, base=0)
                    vcpu.registers.update({"cs": code, "rip": 0x1000})
                elif count == 1000:
                    print(f"served {count} exits, the last is {exit_}", flush=True)


VMMS: Final[dict[str, Callable[[str], None]]] = {"linux": linux, "tiny": tiny, "victim": victim}


def become(vmm: str) -> None:
    """Root gives up everything, after its imports: the user need not reach this program's files."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(USERS[vmm], USERS[vmm], USERS[vmm])
        os.setresuid(USERS[vmm], USERS[vmm], USERS[vmm])


# -- the demo


class Vmm:
    """A VMM process; each line that it prints appears with its name."""

    def __init__(self, name: str, socket: str) -> None:
        self.name = name
        self.said = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo", name, socket],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._printer = threading.Thread(target=self._print)
        self._printer.start()

    def wait(self) -> int:
        """Its exit status, when everything that it said is printed."""
        status = self.process.wait()
        self._printer.join()
        return status

    def _print(self) -> None:
        assert self.process.stdout
        with self.process.stdout as said:
            for line in said:
                print(f"{self.name:>7} | {line.decode('utf-8', 'replace').rstrip()}", flush=True)
                self.said.set()
        self.said.set()  # nothing more will come


def main() -> int:
    """Run the demo: 0 when everything went well and nothing is left."""
    have_linux = find_images()
    directory = Path(tempfile.mkdtemp(prefix="vmsession-demo-"))
    directory.chmod(0o755)
    core, socket = start_core(directory)
    try:
        failed = run_vmms(socket, have_linux=have_linux)
        left = audit(socket)
    finally:
        core.send_signal(signal.SIGTERM)
        core.wait(30)
        shutil.rmtree(directory)
    say("failed: " + ", ".join(failed) if failed else "all went well")
    return 1 if failed or left else 0


def find_images() -> bool:
    """See that KERNEL and INITRD name something; False, with advice, where nothing can be had."""
    if os.environ.get("KERNEL"):
        return True
    try:
        images = obtain(default_cache(), say)
    except ImagesError as error:
        say(f"no Linux: {error}: make demo KERNEL=/path/to/bzImage INITRD=/path/to/initrd")
        return False
    os.environ["KERNEL"] = str(images.kernel)
    if not os.environ.get("INITRD"):
        initrd = default_cache() / "demo.cpio"
        initrd.write_bytes(build(images.busybox.read_bytes(), DEMO))
        os.environ["INITRD"] = str(initrd)
    return True


def start_core(directory: Path) -> tuple[subprocess.Popen[str], str]:
    """A private core, with its log in the directory."""
    core = subprocess.Popen(
        [
            Path(sys.executable).parent / "vmcore",
            *("serve", "--directory", directory, "--audit-directory", directory / "audit"),
            *("--socket-mode", "666", "--log-level", "warning"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert core.stdout
    with core.stdout as said:
        line = said.readline().strip()
    if not line:
        sys.exit(core.wait())
    say(line)
    return core, str(directory / "core.sock")


def run_vmms(socket: str, *, have_linux: bool) -> list[str]:
    """All at once; the victim dies when it has served some exits. The names of those that failed."""
    doomed = Vmm("victim", socket)
    others = [Vmm(name, socket) for name in ("linux", "tiny") if have_linux or name != "linux"]
    doomed.said.wait(60)
    doomed.process.kill()
    say("killed victim with SIGKILL")
    failed = [] if doomed.wait() == -signal.SIGKILL else [doomed.name]
    return failed + [vmm.name for vmm in others if vmm.wait() != 0]


def audit(socket: str) -> bool:
    """Print the life of every dataspace, and whether anything is left."""
    with connect(socket) as core:
        end = time.monotonic() + SETTLING_SECONDS
        while any(left := leftover(core.totals())) and time.monotonic() < end:
            select.select([], [], [], 0.05)
        totals = core.totals()
    print(f"\nthe life of all {totals.created} dataspaces:\n", flush=True)
    dataspaces(all=True, socket=socket)
    fds, processes, size = left
    print(f"\nalive: {totals.live} dataspaces")
    print(f"leftover: {fds} fds, {processes} processes, {size} bytes", flush=True)
    return any(left)


def leftover(totals: GetTotalsResponse) -> tuple[int, int, int]:
    """fds, processes and bytes that core still holds for clients that are gone."""
    return totals.extra_fds, totals.engine_processes, totals.live_bytes


def say(text: str) -> None:
    """A line of the demo's own."""
    print(f"   demo | {text}", flush=True)


def be_vmm(name: str, socket: str) -> None:
    """A VMM's process: what goes wrong is one line."""
    try:
        VMMS[name](socket)
    except (VmsessionError, ImageError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        be_vmm(*sys.argv[1:])
    else:
        sys.exit(main())
