"""Sleeping and waking on words of shared memory, for a side of a vCPU page that is written in Python.

Python cannot fence. Such a side leaves its `waiting` word at 1 and always wakes: rule 4 of
`proto/vcpu_page.h`. The system calls order its plain loads and stores.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Sequence
from typing import Final

FUTEX: Final = 202  # numbers of the system calls, x86-64
FUTEX_WAITV: Final = 449
FUTEX_WAKE: Final = 1
FUTEX_32: Final = 2  # without FUTEX_PRIVATE_FLAG: other processes see it
EVERYBODY: Final = 2**31 - 1
RETRIED: Final = (errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR)

Word = ctypes.c_uint32


class _Wait(ctypes.Structure):
    """struct futex_waitv, linux/futex.h."""

    _fields_ = (
        ("value", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _Time(ctypes.Structure):
    """struct timespec."""

    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


_system_call = ctypes.CDLL(None, use_errno=True).syscall
_system_call.restype = ctypes.c_long


def sleep(words: Sequence[tuple[Word, int]], seconds: float) -> None:
    """Sleep until one of these words is not what was seen, or somebody wakes, or the time is over:
    look at the words again. Raises OSError where the kernel has no futex_waitv (Linux 5.16)."""
    waits = (_Wait * len(words))(
        *(_Wait(seen, ctypes.addressof(word), FUTEX_32) for word, seen in words)
    )
    end = divmod(time.monotonic_ns() + int(seconds * 1e9), 10**9)
    done = _system_call(
        ctypes.c_long(FUTEX_WAITV),
        waits,
        ctypes.c_uint(len(words)),
        ctypes.c_uint(0),
        ctypes.byref(_Time(*end)),
        ctypes.c_int(time.CLOCK_MONOTONIC),
    )
    if done < 0 and (error := ctypes.get_errno()) not in RETRIED:
        raise OSError(error, os.strerror(error))


def wake(word: Word) -> None:
    """Wake everybody who sleeps on this word."""
    _system_call(
        ctypes.c_long(FUTEX),
        ctypes.byref(word),
        ctypes.c_int(FUTEX_WAKE),
        ctypes.c_int(EVERYBODY),
        None,
        None,
        ctypes.c_int(0),
    )
