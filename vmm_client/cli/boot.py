"""`vmm boot`: a stock Linux on a PC board, its serial console on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from vmm_client import console
from vmm_client.boards.pc import Ending
from vmm_client.boot.entry import ImageError
from vmm_client.boot.images import ImagesError, default_cache, obtain
from vmm_client.boot.initramfs import SHELL, build
from vmm_client.cli.ending import status_of
from vmm_client.cli.schedule import Cpus, Priority
from vmm_client.cli.sizes import Size
from vmm_client.connection import connect
from vmm_client.doctor.select import Need, select_engine
from vmm_client.linux import LinuxImage, LinuxMachine


def boot(  # noqa: PLR0913 - the options of the command
    kernel: Path | None = None,
    *,
    initrd: Path | None = None,
    append: str = "",
    engine: str = "auto",
    memory: Size = 256 << 20,
    priority: Priority = None,
    affinity: Cpus = None,
    socket: str | None = None,
) -> int:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    kernel
        A bzImage. By default Debian's cloud kernel, fetched once by apt.
    initrd
        Its initial file system. With the default kernel, by default a busybox shell.
    append
        Added to the kernel's command line.
    engine
        The engine to run it on; `auto` takes the first that can run a stock kernel here.
    memory
        The guest's memory, as in `256M` or `2G`.
    priority
        As of nice(1), 0 to 19; by default the most urgent that policy allows.
    affinity
        The CPUs to keep to, as in `0-3,8`; by default all that policy allows.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    with connect(socket) as core:
        image = _image(kernel, initrd, append)
        if engine == "auto":
            engine = select_engine(core, Need.STOCK_KERNEL)
        with LinuxMachine(
            core,
            engine,
            image,
            memory,
            console.write,
            priority=priority,
            affinity=affinity or (),
        ) as machine:
            return status_of(lambda: _run(machine))


def _run(machine: LinuxMachine) -> Ending:
    with console.attached(machine.receive, machine.leave):
        engine = machine.session.engine
        _say(f"booting on engine {engine}; {console.HELP}", end="\r\n")  # the terminal is raw
        ending = machine.run()
    _say(f"the machine ended: {ending.value}")
    return ending


def _image(kernel: Path | None, initrd: Path | None, append: str) -> LinuxImage:
    if kernel is not None:
        return LinuxImage(kernel.read_bytes(), initrd.read_bytes() if initrd else b"", append)
    try:
        images = obtain(default_cache(), _say)
    except ImagesError as error:
        raise ImageError(f"{error}: vmm boot KERNEL --initrd INITRD") from error
    archive = initrd.read_bytes() if initrd else build(images.busybox.read_bytes(), SHELL)
    return LinuxImage(images.kernel.read_bytes(), archive, append)


def _say(text: str, end: str = "\n") -> None:
    print(f"vmm: {text}", file=sys.stderr, end=end, flush=True)
