"""A stock Debian cloud kernel and a static busybox, from Debian's packages, kept in a cache.

Nothing is built and nothing is altered: `linux-image-cloud-amd64` names the current kernel
package, `busybox-static` has the one program of the guest. Later calls find both in
`$XDG_CACHE_HOME/vmsession/debian` and need no network; delete that directory to fetch anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmm_client.boot.apt import Apt, AptError, DiskFullError, DownloadError, UnknownPackageError

KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE: Final = "busybox-static"
REMEDY: Final = "or give a kernel and an initrd of your own"

Progress = Callable[[str], None]


class ImagesError(Exception):
    """The images cannot be had. `__cause__` is the AptError or OSError that says why."""


@dataclass(frozen=True, slots=True)
class Images:
    """Paths of files in the cache, which nobody changes once they are there."""

    kernel: Path
    busybox: Path

    def present(self) -> bool:
        return self.kernel.is_file() and self.busybox.is_file()


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/vmsession`; a relative setting is ignored, as the XDG base directory
    specification asks."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".cache"
    return base / "vmsession"


def obtain(cache: Path, progress: Progress = lambda _step: None) -> Images:
    """The images in `cache`, fetched if they are not there: whole or not at all.

    `progress` is told each step that takes time. Concurrent calls, in any process, wait for one
    another. ImagesError: no apt, no network, no Debian, no space, no access to the cache.
    """
    images = _images(cache / "debian")
    if images.present():
        return images
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _exclusive(cache / "lock", progress):
            if not images.present():
                _fetch(cache, progress)
    except DownloadError as error:
        raise ImagesError(f"{error}; check the network, {REMEDY}") from error
    except UnknownPackageError as error:
        raise ImagesError(
            f"{error}; this is {_distribution()}, Debian is needed, {REMEDY}"
        ) from error
    except AptError as error:
        raise ImagesError(f"{error}, {REMEDY}") from error
    except OSError as error:
        raise _storage_error(cache, error) from error
    return images


def _images(directory: Path) -> Images:
    return Images(kernel=directory / "vmlinuz", busybox=directory / "busybox")


def _fetch(cache: Path, progress: Progress) -> None:
    """Fills a directory beside the real one and renames it. What a killed run left is removed:
    the lock makes it nobody's."""
    partial, final = cache / "debian.partial", cache / "debian"
    for leftover in (partial, final):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        _download(partial / "apt", _images(partial), progress)
        shutil.rmtree(partial / "apt")
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(directory: Path, images: Images, progress: Progress) -> None:
    directory.mkdir()
    apt = Apt(directory)
    progress("fetching Debian's package lists")
    apt.update()
    kernel = _kernel_package(apt)
    progress(f"downloading {kernel}")
    apt.extract(apt.download(kernel), _is_kernel, images.kernel)
    progress(f"downloading {BUSYBOX_PACKAGE}")
    apt.extract(apt.download(BUSYBOX_PACKAGE), _is_busybox, images.busybox)


def _kernel_package(apt: Apt) -> str:
    """The package behind the metapackage: its one dependency that is a kernel image."""
    for name in apt.dependencies(KERNEL_PACKAGE):
        if name.startswith("linux-image-"):
            return name
    raise UnknownPackageError(f"{KERNEL_PACKAGE} depends on no kernel image")


def _is_kernel(path: str) -> bool:
    return path.startswith("boot/vmlinuz-")


def _is_busybox(path: str) -> bool:
    return path in ("bin/busybox", "usr/bin/busybox")


@contextmanager
def _exclusive(path: Path, progress: Progress) -> Iterator[None]:
    """Holds a lock that ends with this process at the latest."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that fetches the images")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _storage_error(cache: Path, error: OSError) -> ImagesError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ImagesError(f"{DiskFullError(cache)}, {REMEDY}")
    return ImagesError(
        f"cannot keep images in {cache}: {error.strerror}; name another place in $XDG_CACHE_HOME, "
        f"{REMEDY}"
    )


def _distribution() -> str:
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "an unknown system"
    names = [line[12:].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return names[0] if names else "an unknown system"
