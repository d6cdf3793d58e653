"""The Python view of the vCPU page against `proto/vcpu_page.h`, as the compiler sees it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dataspace import vcpu_page as view
from dataspace.registers import SCALARS, SEGMENTS, Segment

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "proto" / "vcpu_page.h"

MACROS = {
    "VCPU_PAGE_MAGIC": view.MAGIC,
    "VCPU_PAGE_ABI": view.ABI,
    "VCPU_HALF_BYTES": view.HALF_BYTES,
    "VCPU_VMM_HALF": view.VMM_HALF,
    "VCPU_FPU_VALID": view.FPU_VALID,
    "VCPU_FPU_CHARGED": view.FPU_CHARGED,
    "VCPU_FPU_BYTES": view.FPU_BYTES,
    "VCPU_PAGE_BYTES": view.PAGE_BYTES,
    "VCPU_DATA_BYTES": view.DATA_BYTES,
    "VCPU_WRITTEN_RANGES": view.WRITTEN_RANGES,
    "VCPU_WRITTEN_ALL": view.WRITTEN_ALL,
    "VCPU_FPU_BIT": view.FPU_BIT,
    "VCPU_DEBUG_STEP": view.DEBUG_STEP,
    "INJECT_VALID": view.INJECT_VALID,
    "INJECT_ERROR_CODE": view.INJECT_ERROR_CODE,
    "INJECT_TYPE_SHIFT": view.INJECT_TYPE_SHIFT,
}

ENGINE_OFFSETS = {
    "magic": view.MAGIC_AT,
    "abi": view.ABI_AT,
    "size": view.SIZE_AT,
    "index": view.INDEX_AT,
    "tsc_khz": view.TSC_KHZ_AT,
    "fpu_size": view.FPU_SIZE_AT,
    "exit_seq": view.EXIT_SEQ_AT,
    "engine_waiting": view.ENGINE_WAITING_AT,
    "pause_ack": view.PAUSE_ACK_AT,
    "window_ack": view.WINDOW_ACK_AT,
    "exit.reason": view.EXIT_REASON_AT,
    "exit.flags": view.EXIT_FLAGS_AT,
    "exit.address": view.EXIT_ADDRESS_AT,
    "exit.value": view.EXIT_VALUE_AT,
    "exit.size": view.EXIT_SIZE_AT,
    "exit.count": view.EXIT_COUNT_AT,
    "exit.ip": view.EXIT_IP_AT,
    "exit.instruction_length": view.EXIT_LENGTH_AT,
    "exit.injection": view.EXIT_INJECTION_AT,
    "exit.detail": view.EXIT_DETAIL_AT,
    "exit.instruction_bytes_size": view.EXIT_BYTES_SIZE_AT,
    "exit.instruction_bytes": view.EXIT_BYTES_AT,
    "data": view.DATA_AT,
    "valid": view.MASK_AT,
    "scalar": view.SCALAR_AT,
    "segment": view.SEGMENT_AT,
}

VMM_OFFSETS = {
    "run_seq": view.RUN_SEQ_AT,
    "vmm_waiting": view.VMM_WAITING_AT,
    "kick_seq": view.KICK_SEQ_AT,
    "pause_seq": view.PAUSE_SEQ_AT,
    "window_seq": view.WINDOW_SEQ_AT,
    "reply.flags": view.REPLY_FLAGS_AT,
    "reply.injection": view.REPLY_INJECTION_AT,
    "reply.injection_error": view.REPLY_INJECTION_ERROR_AT,
    "reply.written_count": view.REPLY_WRITTEN_COUNT_AT,
    "reply.value": view.REPLY_VALUE_AT,
    "reply.wanted": view.REPLY_WANTED_AT,
    "reply.written": view.REPLY_WRITTEN_AT,
    "data": view.DATA_AT,
    "charged": view.MASK_AT,
    "scalar": view.SCALAR_AT,
    "segment": view.SEGMENT_AT,
    "debug": view.DEBUG_AT,
}

ENUMS = {
    "vcpu_exit_reason": ("EXIT_", view.Reason),
    "vcpu_injection_result": ("INJECTION_", view.Injection),
    "vcpu_inject_type": ("INJECT_", view.InjectType),
    "vcpu_activity": ("ACTIVITY_", view.Activity),
    "vcpu_refusal": ("REFUSED_", view.ReplyRefusal),
}
COUNTS = {"EXIT_REASONS"}  # no values of their enums
FLAGS = {"EXIT_": view.ExitFlag, "REPLY_": view.ReplyFlag}
REGISTERS = {"vcpu_scalar": ("REG_", SCALARS), "vcpu_segment": ("SEG_", SEGMENTS)}
# Numbers that Python passes on and never looks into.
NOT_IN_VIEW = re.compile("VCPU_SHADOW_|VMSESSION_")


def enumerators(enum: str) -> list[str]:
    """The names in an enum of the header, in its order."""
    found = re.search(rf"enum {enum} \{{(.*?)\}}", HEADER.read_text(), re.DOTALL)
    assert found
    return re.findall(r"\b[A-Z][A-Z0-9_]+\b", re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL))


def expected() -> dict[str, int]:
    """Expressions in C, and what Python has for them."""
    table = dict(MACROS)
    table |= {f"offsetof(struct vcpu_engine_half, {at})": v for at, v in ENGINE_OFFSETS.items()}
    table |= {f"offsetof(struct vcpu_vmm_half, {at})": v for at, v in VMM_OFFSETS.items()}
    for prefix, members in (*ENUMS.values(), *FLAGS.items()):
        table |= {prefix + name: member.value for name, member in members.__members__.items()}
    for prefix, names in REGISTERS.values():
        table |= {prefix + name.upper(): index for index, name in enumerate(names)}
    table |= {
        "REG_SCALARS": len(SCALARS),
        "SEG_SEGMENTS": len(SEGMENTS),
        "sizeof(struct vcpu_segment_value)": 16,
        "offsetof(struct vcpu_segment_value, attributes)": 2,
        "offsetof(struct vcpu_segment_value, limit)": 4,
        "offsetof(struct vcpu_segment_value, base)": 8,
        "sizeof(struct vcpu_range)": 16,
        "offsetof(struct vcpu_range, size)": 8,
        "sizeof(((struct vcpu_debug *)0)->address) / 8": view.BREAKPOINTS,
        "offsetof(struct vcpu_debug, control)": 8 * view.BREAKPOINTS,
        "offsetof(struct vcpu_page, vmm)": view.VMM_HALF,
        "offsetof(struct vcpu_page, fpu_valid)": view.FPU_VALID,
        "offsetof(struct vcpu_page, fpu_charged)": view.FPU_CHARGED,
    }
    return table


def test_every_number_is_the_one_that_the_compiler_sees(tmp_path: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    assert compiler, "the header is checked with a C compiler: install gcc"
    table = expected()
    lines = "".join(f'printf("%llu\\n", (unsigned long long)({e}));\n' for e in table)
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        f"int main(void) {{\n{lines}return 0;\n}}\n"
    )
    subprocess.run([compiler, "-o", tmp_path / "layout", source], check=True)
    output = subprocess.run([tmp_path / "layout"], stdout=subprocess.PIPE, text=True, check=True)
    seen = dict(zip(table, map(int, output.stdout.split()), strict=True))
    assert seen == table


def test_no_macro_of_the_header_is_missing_in_python() -> None:
    defined = set(re.findall(r"^#define (\w+)", HEADER.read_text(), re.MULTILINE))
    flags = {prefix + flag.name for prefix, flags in FLAGS.items() for flag in flags if flag.name}
    viewed = set(MACROS) | flags
    assert {name for name in defined - viewed if not NOT_IN_VIEW.match(name)} == set()
    assert viewed <= defined


@pytest.mark.parametrize("enum", ENUMS)
def test_no_enumerator_of_the_header_is_missing_in_python(enum: str) -> None:
    prefix, members = ENUMS[enum]
    named = [name for name in enumerators(enum) if name not in COUNTS]
    assert named == [prefix + member.name for member in members]


@pytest.mark.parametrize("enum", REGISTERS)
def test_registers_stand_in_the_order_of_the_header(enum: str) -> None:
    prefix, names = REGISTERS[enum]
    assert enumerators(enum)[:-1] == [prefix + name.upper() for name in names]


def test_no_offset_in_python_is_left_unchecked() -> None:
    offsets = {name for name in vars(view) if name.endswith("_AT")}
    checked = [*ENGINE_OFFSETS.values(), *VMM_OFFSETS.values()]
    # Data, masks, scalars and segments stand alike in both halves.
    assert len(offsets) == len(checked) - 4
    assert {getattr(view, name) for name in offsets} == set(checked)


@pytest.fixture
def page() -> bytearray:
    return bytearray(view.PAGE_BYTES)


def test_a_charged_register_is_read_back_with_all_its_parts(page: bytearray) -> None:
    half = view.VmmHalf(page, view.VMM_HALF)
    code = Segment(0x10, 0xA09B, 0xFFFFFFFF, 0x1234_5678_9ABC_DEF0)
    half.charge("cs", code)
    half.charge("r15", 0xFFFF_FFFF_FFFF_FFFF)
    reader = view.EngineHalf(page, view.VMM_HALF)
    assert reader.registers() == {"cs": code, "r15": 0xFFFF_FFFF_FFFF_FFFF}
    assert half.masks == view.mask(["cs", "r15"])


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("rax", 1 << 64, ValueError),
        ("rax", -1, ValueError),
        ("cs", Segment(1 << 16, 0, 0, 0), ValueError),
        ("cs", Segment(0, 0, 1 << 32, 0), ValueError),
        ("cs", 1, TypeError),
        ("rax", Segment(0, 0, 0, 0), TypeError),
        ("rbz", 1, KeyError),
    ],
)
def test_a_value_that_does_not_fit_is_not_charged(
    page: bytearray, name: str, value: int | Segment, error: type[Exception]
) -> None:
    half = view.VmmHalf(page, view.VMM_HALF)
    with pytest.raises(error):
        half.charge(name, value)
    assert half.masks == (0, 0)


def test_what_the_engine_says_is_bounded(page: bytearray) -> None:
    half = view.EngineHalf(page)
    for at in (view.EXIT_SIZE_AT, view.EXIT_COUNT_AT, view.EXIT_BYTES_SIZE_AT, view.FPU_SIZE_AT):
        half.u32[at // 4] = 0xFFFFFFFF
    half.u64[view.MASK_AT // 8] = half.u64[view.MASK_AT // 8 + 1] = 0xFFFF_FFFF_FFFF_FFFF
    assert len(half.data) == view.DATA_BYTES
    assert len(half.instruction_bytes) == 16
    assert half.fpu_size == view.FPU_BYTES
    assert list(half.registers()) == [*SCALARS, *SEGMENTS]


def test_nine_written_ranges_are_everything(page: bytearray) -> None:
    half = view.VmmHalf(page, view.VMM_HALF)
    half.written((n << 12, 1) for n in range(8))
    assert half.u32[view.REPLY_WRITTEN_COUNT_AT // 4] == 8
    half.written((n << 12, 1) for n in range(9))
    assert half.u32[view.REPLY_WRITTEN_COUNT_AT // 4] == view.WRITTEN_ALL


def test_half_a_half_is_refused() -> None:
    with pytest.raises(ValueError, match="half of a vCPU page has 2048 bytes, this has 1024"):
        view.EngineHalf(bytearray(1024))
