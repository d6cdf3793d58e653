"""The errors are a closed set, each with a reason of its own."""

import pytest

from dataspace import errors
from dataspace.errors import DataspaceError, MemoryFailure


def test_reasons_are_distinct_and_published() -> None:
    reasons = [refusal.reason for refusal in DataspaceError.__subclasses__()]
    assert sorted(reasons) == [
        "ADDRESS_MAP_FULL",
        "ALREADY_EXISTS",
        "INVALID_DATASPACE",
        "INVALID_RANGE",
        "INVALID_STATE",
        "MEMORY_FAILURE",
        "NOT_FOUND",
        "OUT_OF_CAPS",
        "OUT_OF_RAM",
        "OUT_OF_RANGE",
        "READ_ONLY",
        "REGION_CONFLICT",
        "STILL_WRITABLE",
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.OutOfRam(4096, 100, 200, "uid 1"),
            "4096 bytes asked of account 'uid 1', which uses 100 of 200",
        ),
        (
            errors.OutOfCaps(1, 2, 2, "uid 1"),
            "1 capabilities asked of account 'uid 1', which uses 2 of 2",
        ),
        (
            errors.RegionConflict(0x1000, 0x2000, 0x2000, 0x1000),
            "0x2000 bytes at 0x1000 overlap 0x1000 bytes at 0x2000",
        ),
        (errors.InvalidRange("not page-aligned", gpa=1, size=2), "not page-aligned, gpa=1, size=2"),
        (errors.OutOfRange(4, 2, 5), "2 bytes at offset 4 of 5"),
        (errors.NotWritable("bios"), "bios is read-only"),
        (MemoryFailure(28), "ENOSPC: No space left on device"),
        (MemoryFailure(4095), "4095: Unknown error 4095"),
        (
            errors.InvalidTransition("d", "freed", "is held"),
            "d cannot be freed: is held",
        ),
    ],
)
def test_messages_tell_the_value_and_the_limit(error: DataspaceError, message: str) -> None:
    assert str(error) == message
