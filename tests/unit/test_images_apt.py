"""Fetching the images, with programs in the place of apt's that answer from a script."""

from __future__ import annotations

import fcntl
import io
import os
import tarfile
import threading
from pathlib import Path

import pytest

from vmm_client.boot import apt, images
from vmm_client.boot.apt import AptMissingError, DiskFullError, DownloadError, UnknownPackageError
from vmm_client.boot.images import ImagesError, default_cache, obtain

KERNEL = "linux-image-6.1.0-99-cloud-amd64"

APT_GET = """\
#!/bin/sh
echo "apt-get $*" >>"$FAKE/calls"
cp "$2" "$FAKE/apt.conf"
case "$*" in
*update) cat "$FAKE/update-stderr" >&2 ;;
*download*)
    for package; do :; done
    cp "$FAKE/$package.tar" "$package.deb" || {
        echo "E: Unable to locate package $package" >&2; exit 100; } ;;
esac
"""
APT_CACHE = """\
#!/bin/sh
cat "$FAKE/depends" || { echo "E: No packages found" >&2; exit 100; }
"""
DPKG_DEB = """\
#!/bin/sh
cat "$2"
"""


class FakeApt:
    """Programs on PATH that read what they say from files in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-deb", DPKG_DEB)):
            self.program(name, text)
        (root / "update-stderr").touch()
        (root / "depends").write_text(f"{images.KERNEL_PACKAGE}\n  Depends: {KERNEL}\n")
        self.package(KERNEL, {"boot/System.map": b"map", "boot/vmlinuz-6.1.0-99": b"kernel"})
        self.package(images.BUSYBOX_PACKAGE, {"bin/busybox": b"busybox"})

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def package(self, name: str, files: dict[str, bytes]) -> None:
        with tarfile.open(self.root / f"{name}.tar", "w") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(f"./{path}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    root = tmp_path / "fake"
    root.mkdir()
    fake = FakeApt(root)
    monkeypatch.setenv("FAKE", str(root))
    monkeypatch.setenv("PATH", f"{fake.bin}:/usr/bin:/bin")
    return fake


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "vmsession"


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_fetches_kernel_and_busybox_and_leaves_nothing_else(fake: FakeApt, cache: Path) -> None:
    steps: list[str] = []
    found = obtain(cache, steps.append)
    assert (found.kernel.read_bytes(), found.busybox.read_bytes()) == (b"kernel", b"busybox")
    assert left_in(cache) == ["debian", "lock"]
    assert left_in(cache / "debian") == ["busybox", "vmlinuz"]
    assert steps == [
        "fetching Debian's package lists",
        f"downloading {KERNEL}",
        "downloading busybox-static",
    ]


def test_a_second_call_runs_nothing(fake: FakeApt, cache: Path) -> None:
    first = obtain(cache)
    calls = fake.calls()
    assert obtain(cache) == first
    assert fake.calls() == calls


def test_apts_state_is_private_and_its_hooks_are_off(fake: FakeApt, cache: Path) -> None:
    obtain(cache)
    for call in fake.calls():
        assert call.startswith(f"apt-get -c {cache}/debian.partial/apt/apt.conf -qq ")
    text = (fake.root / "apt.conf").read_text()
    assert f'Dir::State "{cache}/debian.partial/apt/state";' in text
    assert f'Dir::Cache "{cache}/debian.partial/apt/cache";' in text
    assert "#clear APT::Update::Post-Invoke;" in text


def test_what_a_killed_run_left_is_replaced(fake: FakeApt, cache: Path) -> None:
    for leftover in ("debian.partial/apt/state", "debian"):
        (cache / leftover).mkdir(parents=True)
    (cache / "debian" / "vmlinuz").write_bytes(b"half")
    assert obtain(cache).kernel.read_bytes() == b"kernel"
    assert left_in(cache) == ["debian", "lock"]


def failure(cache: Path, cause: type[Exception]) -> str:
    """The message of the failed call, which leaves nothing behind."""
    with pytest.raises(ImagesError) as error:
        obtain(cache)
    assert isinstance(error.value.__cause__, cause)
    assert left_in(cache) == ["lock"]
    return str(error.value)


def test_without_apt(fake: FakeApt, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fake.root))
    assert "apt-get is not installed" in failure(cache, AptMissingError)


def test_without_dpkg(fake: FakeApt, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake.bin / "dpkg-deb").rename(fake.bin / "gone")
    for name in ("sh", "cp", "cat"):
        (fake.bin / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(fake.bin))
    assert "dpkg-deb is not installed" in failure(cache, AptMissingError)


def test_without_a_network(fake: FakeApt, cache: Path) -> None:
    (fake.root / "update-stderr").write_text("W: Failed to fetch somewhere: refused\n")
    (fake.root / "depends").unlink()
    message = failure(cache, DownloadError)
    assert "somewhere: refused" in message
    assert "check the network" in message


def test_when_apt_fails(fake: FakeApt, cache: Path) -> None:
    fake.program("apt-get", "#!/bin/sh\necho E: something broke >&2\nexit 100\n")
    assert "apt-get -qq update failed: E: something broke" in failure(cache, DownloadError)


def test_where_the_kernel_is_not_offered(fake: FakeApt, cache: Path) -> None:
    (fake.root / "depends").unlink()
    message = failure(cache, UnknownPackageError)
    assert "no package linux-image-cloud-amd64" in message
    assert "Debian is needed" in message


def test_where_busybox_is_not_offered(fake: FakeApt, cache: Path) -> None:
    (fake.root / "busybox-static.tar").unlink()
    assert "no package busybox-static" in failure(cache, UnknownPackageError)


def test_a_metapackage_without_a_kernel(fake: FakeApt, cache: Path) -> None:
    (fake.root / "depends").write_text("meta\n  Depends: something-else\n  Depends: <virtual>\n")
    assert "depends on no kernel image" in failure(cache, UnknownPackageError)


def test_a_package_without_the_file(fake: FakeApt, cache: Path) -> None:
    fake.package(KERNEL, {"boot/System.map": b"map"})
    assert "does not hold the file for vmlinuz" in failure(cache, UnknownPackageError)


def test_a_damaged_package(fake: FakeApt, cache: Path) -> None:
    (fake.root / f"{KERNEL}.tar").write_bytes(b"no tar at all" * 100)
    assert "damaged package" in failure(cache, DownloadError)


def test_a_disk_that_fills_while_apt_writes(fake: FakeApt, cache: Path) -> None:
    fake.program("apt-get", "#!/bin/sh\necho E: No space left on device >&2\nexit 100\n")
    message = failure(cache, DiskFullError)
    assert str(cache) in message
    assert "bytes free" in message


def test_a_disk_that_is_too_full_to_begin(
    fake: FakeApt, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "SPACE_NEEDED", 1 << 60)
    assert f"{1 << 60} needed" in failure(cache, DiskFullError)
    assert fake.calls() == []


def test_a_disk_that_fills_while_we_write(
    fake: FakeApt, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_path: Path, _data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", write)
    assert f"no space left in {cache}" in failure(cache, OSError)


def test_a_cache_that_cannot_be_made(fake: FakeApt, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImagesError, match=r"cannot keep images in .*file/cache: Not a directory"):
        obtain(tmp_path / "file" / "cache")


def test_concurrent_calls_fetch_once(fake: FakeApt, cache: Path) -> None:
    cache.mkdir(parents=True)
    waiting = threading.Event()
    results: list[images.Images] = []
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(
            target=lambda: results.append(obtain(cache, lambda _step: waiting.set()))
        )
        other.start()
        assert waiting.wait(10)
        (cache / "debian").mkdir()
        for name in ("vmlinuz", "busybox"):
            (cache / "debian" / name).touch()
    other.join(10)
    assert results == [obtain(cache)]
    assert fake.calls() == []


@pytest.mark.parametrize(
    ("configured", "expected"),
    [("/x/cache", "/x/cache/vmsession"), ("", "/h/.cache/vmsession"), ("y", "/h/.cache/vmsession")],
)
def test_the_cache_follows_xdg(
    monkeypatch: pytest.MonkeyPatch, configured: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("XDG_CACHE_HOME", configured)
    assert default_cache() == Path(expected)
