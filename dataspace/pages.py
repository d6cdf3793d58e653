"""The page: the granularity of memory objects, attachments and RAM accounting."""

PAGE_SIZE = 4096


def aligned(value: int) -> bool:
    """Whether `value` is a multiple of the page size."""
    return value % PAGE_SIZE == 0


def round_up(size: int) -> int:
    """The bytes of the whole pages that hold `size` bytes."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE
