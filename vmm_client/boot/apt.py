"""Debian packages by the machine's own apt, without root and without touching its package lists.

The machine's sources, keys and proxies serve; lists and archives go to a private directory, and
apt checks signatures and hashes as always. Sources: apt.conf(5), apt-get(8), dpkg-deb(1).
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

TIME_LIMIT_S: Final = 300
SPACE_NEEDED: Final = 256 << 20
STDERR_KEPT: Final = 600
NO_SPACE: Final = ("No space left on device", "enough free space")

# The hooks of `update` belong to the machine's lists, which stay as they are.
CONFIGURATION: Final = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{root}/state";
Dir::State::status "/dev/null";
Dir::Cache "{root}/cache";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
"""


class AptError(Exception):
    """Packages could not be had."""


class AptMissingError(AptError):
    """A program of the Debian package tools is not installed."""


class UnknownPackageError(AptError):
    """No package of that name in the machine's sources, or not the file expected in it."""


class DownloadError(AptError):
    """The sources could not be reached, or answered with an error. apt's own words follow."""


class DiskFullError(AptError):
    """Names the directory, the bytes that are free there, and how many are needed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"no space left in {directory}: {_free(directory)} bytes free, {SPACE_NEEDED} needed "
            "while fetching: make room there"
        )


class Apt:
    """apt with its state below `root`, an existing directory of the caller, who removes it.

    Every method raises an AptError of the kinds above.
    """

    def __init__(self, root: Path) -> None:
        # apt itself hangs for good when its lists fill the disk (seen with 2.6).
        if _free(root) < SPACE_NEEDED:
            raise DiskFullError(root)
        self._root = root
        self._configuration = root / "apt.conf"
        self._warnings = ""
        for directory in ("state/lists/partial", "cache/archives/partial", "archives"):
            (root / directory).mkdir(parents=True)
        self._configuration.write_text(CONFIGURATION.format(root=root))

    def update(self) -> None:
        """Fetches the package lists. A source that fails costs only its own packages."""
        self._warnings = self._run("apt-get", "-qq", "update").stderr

    def dependencies(self, package: str) -> list[str]:
        """What the candidate version of `package` depends on."""
        try:
            output = self._run("apt-cache", "depends", package).stdout
        except DownloadError:
            raise self._unknown(package) from None
        words = [line.split() for line in output.splitlines()]
        return [line[1] for line in words if line[:1] == ["Depends:"] and len(line) == 2]

    def download(self, package: str) -> Path:
        """The archive of the candidate version of `package`."""
        archives = self._root / "archives"
        before = set(archives.iterdir())
        self._run("apt-get", "-qq", "download", package)
        new = sorted(set(archives.iterdir()) - before)
        if not new:
            raise self._unknown(package)
        return new[0]

    def extract(self, archive: Path, wanted: Callable[[str], bool], target: Path) -> None:
        """Writes the first regular file of `archive` whose path (as in "boot/vmlinuz-6.1")
        satisfies `wanted` to `target`."""
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            raise _missing(command[0]) from None
        with process:
            assert process.stdout is not None
            try:
                found = _extract(process.stdout, wanted, target)
            finally:
                process.kill()
        if not found:
            raise UnknownPackageError(f"{archive.name} does not hold the file for {target.name}")

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs one of apt's programs; none outlives the call."""
        program, *arguments = command
        try:
            return subprocess.run(
                [program, "-c", str(self._configuration), *arguments],
                cwd=self._root / "archives",
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIME_LIMIT_S,
                check=True,
            )
        except FileNotFoundError:
            raise _missing(program) from None
        except subprocess.TimeoutExpired:
            raise DownloadError(f"{' '.join(command)} took over {TIME_LIMIT_S} s") from None
        except subprocess.CalledProcessError as error:
            raise self._failure(command, error.stderr) from None

    def _failure(self, command: tuple[str, ...], stderr: str) -> AptError:
        if any(words in stderr for words in NO_SPACE):
            return DiskFullError(self._root)
        if "Unable to locate package" in stderr:
            return self._unknown(command[-1])
        return DownloadError(f"{' '.join(command)} failed: {stderr[-STDERR_KEPT:].strip()}")

    def _unknown(self, package: str) -> AptError:
        """A package that is missing after an incomplete update is the network's fault."""
        if "Failed to fetch" in self._warnings:
            return DownloadError(f"no package lists: {self._warnings[-STDERR_KEPT:].strip()}")
        return UnknownPackageError(f"the machine's apt sources offer no package {package}")


def _extract(stream: IO[bytes], wanted: Callable[[str], bool], target: Path) -> bool:
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is not None and wanted(member.name.removeprefix("./")):
                    target.write_bytes(content.read())
                    return True
    except tarfile.TarError as error:
        raise DownloadError(f"damaged package for {target.name}: {error}") from None
    return False


def _free(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _missing(program: str) -> AptMissingError:
    return AptMissingError(f"{program} is not installed: this needs Debian's package tools")
