"""Checks of ranges: guest-physical ones, and parts of a dataspace."""

from dataspace.errors import InvalidDataspace, InvalidRange
from dataspace.pages import aligned


def check_range(gpa: int, size: int, limit: int) -> None:
    """Raise InvalidRange unless the range is whole pages, not empty, and ends by `limit`."""
    if not aligned(gpa) or not aligned(size):
        raise InvalidRange("not page-aligned", gpa=gpa, size=size)
    if size <= 0:
        raise InvalidRange("no positive size", gpa=gpa, size=size)
    if gpa < 0 or gpa + size > limit:
        raise InvalidRange("outside the address space", gpa=gpa, size=size, limit=limit)


def check_dataspace_size(size: int) -> None:
    """Raise InvalidDataspace unless `size` is a positive number of whole pages."""
    if size <= 0 or not aligned(size):
        raise InvalidDataspace("size is no positive number of whole pages", size=size)


def part_size(dataspace_size: int, offset: int, size: int) -> int:
    """Return the bytes of a part of a dataspace, where `size` 0 is the rest from `offset`.

    Raises InvalidDataspace where the part is unaligned or reaches beyond the dataspace.
    """
    check_dataspace_size(dataspace_size)
    if not aligned(offset) or not aligned(size):
        raise InvalidDataspace("not page-aligned", offset=offset, size=size)
    if not 0 <= offset < dataspace_size:
        raise InvalidDataspace("offset beyond the dataspace", offset=offset, limit=dataspace_size)
    if not 0 <= size <= dataspace_size - offset:
        raise InvalidDataspace(
            "size beyond the dataspace", offset=offset, size=size, limit=dataspace_size
        )
    return size or dataspace_size - offset
