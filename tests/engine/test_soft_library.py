"""Which files the software engine loads its CPU from, and what it says of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core_service.engine import protocol
from core_service.engine.native import build
from core_service.engine.protocol import Status, Transport, Type
from tests.engine.harness import Engine, EngineGoneError, environment

VARIABLE = "VMSESSION_BOCHS"
INSTALL = "install bochscpu-python==0.4.0 for CPython 3.11"
BUILD_ID = bytes.fromhex("0dde8887f893634c4d2c0bb64d399f85487a9aa3")


@pytest.fixture
def library() -> bytes:
    """The file that is right."""
    return Path(environment("soft")[VARIABLE]).read_bytes()


def refusal(variables: dict[str, str]) -> str:
    """What the engine says before it ends."""
    with Engine(build.IN_TREE / "vmsession-soft", variables) as engine:
        with pytest.raises(EngineGoneError) as error:
            engine.hello()
        assert engine.wait() == 1
    return str(error.value)


def refusal_of(path: Path, content: bytes) -> str:
    """The same for a file."""
    path.write_bytes(content)
    return refusal({VARIABLE: str(path)})


@pytest.mark.parametrize("variables", [{}, {VARIABLE: ""}])
def test_no_path(variables: dict[str, str]) -> None:
    assert refusal(variables) == f"{VARIABLE} is not set; {INSTALL}"


def test_no_file() -> None:
    assert refusal({VARIABLE: "/nowhere.so"}) == "/nowhere.so: open: No such file or directory"


def test_directory(tmp_path: Path) -> None:
    assert "no x86-64 ELF file" in refusal({VARIABLE: str(tmp_path)})


def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "no x86-64 ELF file" in refusal({VARIABLE: str(tmp_path / "fifo")})


@pytest.mark.parametrize("size", [0, 1, 63])
def test_shorter_than_a_header(tmp_path: Path, library: bytes, size: int) -> None:
    path = tmp_path / "short"
    assert refusal_of(path, library[:size]) == f"no x86-64 ELF file; {INSTALL}: {path}"


def test_text_file(tmp_path: Path) -> None:
    assert "no x86-64 ELF file" in refusal_of(tmp_path / "text", b"#!/bin/sh\n" * 100)


def test_other_machine(tmp_path: Path, library: bytes) -> None:
    other = bytearray(library)
    other[18:20] = b"\xb7\x00"  # e_machine: AArch64
    assert "no x86-64 ELF file" in refusal_of(tmp_path / "aarch64", bytes(other))


def test_headers_cut_off(tmp_path: Path, library: bytes) -> None:
    assert "truncated; " in refusal_of(tmp_path / "cut", library[:100])


def test_end_cut_off(tmp_path: Path, library: bytes) -> None:
    """The dynamic loader would die of SIGBUS."""
    half = len(library) // 2
    assert f"truncated at {half} bytes; " in refusal_of(tmp_path / "half", library[:half])


def test_other_build(tmp_path: Path, library: bytes) -> None:
    assert library.count(BUILD_ID) == 1
    text = refusal_of(tmp_path / "other", library.replace(BUILD_ID, bytes(20)))
    assert text.startswith(f"build-id {'00' * 20}, wanted {BUILD_ID.hex()}; {INSTALL}: /")


def test_no_build_id(tmp_path: Path, library: bytes) -> None:
    at = library.index(BUILD_ID) - 8  # the note's type
    assert library[at : at + 4] == b"\x03\0\0\0"
    text = refusal_of(tmp_path / "none", library[:at] + b"\x07\0\0\0" + library[at + 4 :])
    assert f"build-id none, wanted {BUILD_ID.hex()}" in text


def test_missing_symbol(tmp_path: Path, library: bytes) -> None:
    """It is found only when the first vCPU is created, and is told as what it is."""
    path = tmp_path / "missing"
    path.write_bytes(library.replace(b"cpu_new\0", b"cpu_old\0"))
    with Engine(build.IN_TREE / "vmsession-soft", {VARIABLE: str(path)}) as engine:
        engine.hello()
        stream = Transport.STREAM
        response = engine.ask(lambda n: protocol.vcpu_packet(Type.CREATE_VCPU, n, 0, stream))
    assert response.status == Status.UNSUPPORTED
    assert "undefined symbol: cpu_old" in response.text


def test_the_copy_cannot_be_written() -> None:
    """By nobody, whatever they may open."""
    with Engine(build.IN_TREE / "vmsession-soft", environment("soft")) as engine:
        engine.hello()
        stream = Transport.STREAM
        engine.demand(lambda n: protocol.vcpu_packet(Type.CREATE_VCPU, n, 0, stream))
        opened = engine.opened().items()
        copies = [fd for fd, target in opened if target.startswith("/memfd:bochs")]
        assert len(copies) == 1
        with copies[0].open("r+b", buffering=0) as copy, pytest.raises(PermissionError):
            copy.write(b"\0")


def test_crazy_program_headers(tmp_path: Path, library: bytes) -> None:
    """e_phoff beyond anything."""
    crazy = bytearray(library)
    crazy[32:40] = b"\xff" * 8
    assert "truncated; " in refusal_of(tmp_path / "crazy", bytes(crazy))
