"""A process that holds a memory by the fd given as its argument; it does as standard input says.

Each line is a command, and is answered with a line once it has been done. It imports nothing of
the project: a client need not, either.
"""

import ctypes
import errno
import mmap
import os
import signal
import sys

_PAGE = 4096
_NOBODY = 65534
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _map(fd: int) -> int:
    # Python's mmap keeps a duplicate of the fd; this mapping has to be the only thing left.
    address: int | None = _libc.mmap(None, _PAGE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def _reopen_writable(fd: int) -> str:
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "reopened"


def _fork_heir() -> int:
    heir = os.fork()
    if heir == 0:
        signal.pause()
    return heir


def _serve(fd: int) -> None:
    address = 0
    for line in sys.stdin:
        answer = "done"
        match line.strip():
            case "map":
                address = _map(fd)
            case "unmap":
                _libc.munmap(address, _PAGE)
            case "close":
                os.close(fd)
            case "become another user":
                os.setgroups([])
                os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            case "reopen":
                answer = _reopen_writable(fd)
            case "fork":
                answer = str(_fork_heir())
        print(answer, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
