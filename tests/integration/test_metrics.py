"""`vmm metrics` beside a real core."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from vmsession.v1 import dataspace_pb2, vm_session_pb2

from tests.integration.commands import BIN, vmm
from tests.integration.running_core import ROOT, RunningCore, Stubs
from tests.integration.waiting import eventually

METRIC = re.compile(r"`(vmsession_\w+)(\{[^}]*\})?`")


def series(text: str) -> dict[str, float]:
    """The value of each series that has no labels, and of those of a user by their name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def exporter(socket: Path) -> Iterator[str]:
    """`vmm metrics`; its address."""
    command = [str(BIN / "vmm"), "metrics", "--listen", "127.0.0.1:0", "--socket", str(socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(address, timeout=15) as answer:
        return series(answer.read().decode())


def test_what_lives_is_told_and_core_may_go(core: RunningCore, stubs: Stubs) -> None:
    request = vm_session_pb2.CreateSessionRequest(engine="soft")
    session = stubs.vm.CreateSession(request).session.name
    stream = vm_session_pb2.TRANSPORT_STREAM
    stubs.vm.CreateVcpu(vm_session_pb2.CreateVcpuRequest(session=session, transport=stream))
    stubs.dataspaces.CreateDataspace(dataspace_pb2.CreateDataspaceRequest(size=1 << 20))
    with exporter(core.socket) as address:
        told = scrape(address)
        assert told["vmsession_up"] == 1
        assert told["vmsession_draining"] == 0
        assert told["vmsession_serving"] == 1
        assert told["vmsession_sessions"] == 1
        assert told["vmsession_vcpus"] == 1
        assert told["vmsession_dataspace_bytes"] >= 1 << 20
        assert told["vmsession_user_ram_used_bytes"] >= 1 << 20
        assert told["vmsession_engine_processes"] == 1
        assert told["vmsession_audit_events_total"] > 3
        assert scrape(address)["vmsession_up"] == 1
        stubs.vm.DeleteSession(vm_session_pb2.DeleteSessionRequest(name=session))
        assert "vmsession_sessions" not in scrape(address)
        core.kill()
        assert scrape(address) == {"vmsession_up": 0}


def test_the_guide_names_metrics_that_there_are(core: RunningCore, stubs: Stubs) -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    table = guide.partition("\n| metric |")[2].partition("\n\n")[0]
    named = {(name, service) for name, service in METRIC.findall(table)}
    assert len(named) > 5
    stubs.dataspaces.CreateDataspace(dataspace_pb2.CreateDataspaceRequest(size=4096))
    text = vmm("metrics", "--once", socket=core.socket).stdout
    there = {
        (sample.name, labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for labels in ("", f'{{service="{sample.labels.get("service")}"}}')
    }
    assert named <= there


def test_a_core_that_comes_later_is_found(core: RunningCore) -> None:
    hidden = core.socket.with_name("hidden.sock")
    core.socket.rename(hidden)
    with exporter(core.socket) as address:
        assert scrape(address) == {"vmsession_up": 0}
        hidden.rename(core.socket)
        eventually(lambda: scrape(address)["vmsession_up"] == 1)


def test_a_file_for_the_node_exporter(core: RunningCore, tmp_path: Path) -> None:
    path = tmp_path / "vmsession.prom"
    done = vmm("metrics", "--once", "--textfile", path, socket=core.socket)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert series(path.read_text())["vmsession_up"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written(core: RunningCore, tmp_path: Path) -> None:
    done = vmm("metrics", "--once", "--textfile", tmp_path / "none" / "x.prom", socket=core.socket)
    assert done.returncode == 1
    assert done.stderr.endswith("No such file or directory\n")


def test_an_address_that_cannot_be_had(core: RunningCore) -> None:
    done = vmm("metrics", "--listen", "203.0.113.1:9464", socket=core.socket)  # RFC 5737: nobody's
    assert done.returncode == 1
    assert done.stderr == "vmm: Cannot assign requested address\n"
