"""The doctor's guests against their source, and what it concludes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vmsession.v1 import core_pb2

from core_service.engine.protocol import Capability
from tests.guests.assemble import assemble
from vmm_client.doctor import guests
from vmm_client.doctor.abilities import EXITS, FEATURES, REGISTERS, Abilities
from vmm_client.doctor.host import Host, look
from vmm_client.doctor.probes import ALL, STOCK_KERNEL, Finding
from vmm_client.doctor.report import EngineReport, conclusions, seen_by_core

SOURCE = Path(guests.__file__).read_text()
GUEST = re.compile(
    r"^(\w+): Final = bytes\.fromhex\(  # (\d+)-bit\n(.*?)^\)", re.MULTILINE | re.DOTALL
)
GUESTS = {name: (int(bits), body) for name, bits, body in GUEST.findall(SOURCE)}

PVM = Host("", "run core in group kvm", "kvm_pvm")
HARDWARE = Host("", "run core in group kvm", "kvm_intel")
ALL_PASS = [Finding(probe.name, True) for probe in ALL]
NATIVE = {"long mode, ring 0": 3e9, "long mode, ring 3": 3e9}


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_is_what_its_comments_say(name: str) -> None:
    bits, body = GUESTS[name]
    source = "\n".join(re.findall(r'"  # (.*)', body))
    assert getattr(guests, name) == assemble(source, bits)


def test_no_guest_escapes_the_test() -> None:
    assert set(GUESTS) == {name for name, value in vars(guests).items() if isinstance(value, bytes)}


def host_of(root: Path, *, mode: int | None, flags: str = "", module: str = "") -> Host:
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(f"flags\t: fpu {flags} sse\n")
    if mode is not None:
        (root / "dev").mkdir()
        (root / "dev" / "kvm").touch()
        (root / "dev" / "kvm").chmod(mode)
    if module:
        (root / "sys" / "module" / module).mkdir(parents=True)
    return look(root)


def test_a_host_with_kvm_has_no_problem(tmp_path: Path) -> None:
    host = host_of(tmp_path, mode=0o660, module="kvm_amd")
    assert (host.problem, host.module) == ("", "kvm_amd")
    assert host.advice.startswith("run core in group ")


def test_a_device_for_its_owner_only_is_a_problem(tmp_path: Path) -> None:
    host = host_of(tmp_path, mode=0o600)
    assert host.problem == "/dev/kvm has mode 0600"
    assert "chmod 0660" in host.advice


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ("vmx", "load it: modprobe kvm_intel"),
        ("svm", "load it: modprobe kvm_amd"),
        ("hypervisor", "use `soft`"),
    ],
)
def test_without_kvm_the_cpu_tells_what_to_do(tmp_path: Path, flags: str, advice: str) -> None:
    host = host_of(tmp_path, mode=None, flags=flags)
    assert host.problem == "there is no /dev/kvm"
    assert advice in host.advice


def test_an_engine_that_passes_all_runs_stock_kernels() -> None:
    engine = EngineReport("kvm", findings=ALL_PASS, speeds=NATIVE)
    assert conclusions(HARDWARE, [engine]) == [
        "kvm works. It can run stock kernels.",
        "`--engine auto` boots stock kernels on kvm.",
    ]


def test_kvm_that_emulates_ring_0_is_told_plainly() -> None:
    failing = {"xsave in ring 0", "software interrupts"}
    findings = [Finding(probe.name, probe.name not in failing, "?") for probe in ALL]
    speeds = {"long mode, ring 0": 0.9e6, "long mode, ring 3": 2.5e9}
    engines = [
        EngineReport("kvm", findings=findings, speeds=speeds),
        EngineReport("soft", findings=ALL_PASS, speeds={"long mode, ring 0": 1e8}),
    ]
    assert conclusions(PVM, engines) == [
        "kvm emulates ring 0 here (kvm_pvm), at 0.9 MIPS; only ring 3 is native. "
        "It cannot run stock kernels: software interrupts, xsave in ring 0.",
        "soft works. It can run stock kernels.",
        "`--engine auto` boots stock kernels on soft.",
    ]


def test_an_engine_that_does_not_work_runs_nothing() -> None:
    engine = EngineReport("kvm", "/dev/kvm: permission denied")
    assert conclusions(HARDWARE, [engine]) == [
        "kvm does not work: /dev/kvm: permission denied.",
        "Nothing here boots stock kernels: see what each engine lacks.",
    ]


@pytest.mark.parametrize("probe", STOCK_KERNEL, ids=lambda probe: probe.name)
def test_every_probe_of_a_stock_kernel_counts(probe: object) -> None:
    findings = [Finding(other.name, other is not probe) for other in ALL]
    assert not EngineReport("kvm", findings=findings, speeds=NATIVE).runs_stock_kernels


def test_without_core_the_host_alone_tells() -> None:
    assert "kvm_pvm" in conclusions(PVM, [])[0]
    assert "needs no KVM" in conclusions(Host("there is no /dev/kvm", "", ""), [])[0]
    assert conclusions(HARDWARE, []) == ["Start core to examine the engines."]


def test_a_device_that_core_can_use_is_no_problem() -> None:
    root_only = Host("/dev/kvm has mode 0600", "chmod 0660 /dev/kvm", "kvm_amd")
    works, fails = EngineReport("kvm"), EngineReport("kvm", "permission denied")
    assert seen_by_core(root_only, [works]) == Host("", "core can use it", "kvm_amd")
    assert seen_by_core(root_only, [fails]) == root_only
    assert seen_by_core(root_only, []) == root_only


def test_what_an_engine_lacks_of_the_contract_is_told() -> None:
    told = core_pb2.Capabilities(
        features=["debug", "smp", "later"],
        exit_reasons=[exit_ for exit_ in EXITS if exit_ != "TPR"],
        registers=[name for name in REGISTERS if name not in {"xss", "tr"}],
    )
    can = Abilities.of(told)
    assert can.features == ("debug", "smp", "later")
    assert set(can.missing_features) == set(FEATURES) - {"debug", "smp"}
    assert (can.missing_exits, can.missing_registers) == (["TPR"], ["xss", "tr"])


def test_every_feature_that_core_can_tell_is_known_to_the_doctor() -> None:
    assert set(FEATURES) == {str(each.name).lower() for each in Capability}
