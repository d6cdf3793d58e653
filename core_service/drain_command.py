"""`vmcore drain`: ask core to end once nobody needs it, and wait for that.

Exit status: 0 when all sessions ended by themselves, 3 when core ended some, 1 when core cannot be asked
or did not end, 130 when interrupted: core drains all the same.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from argparse import Namespace
from contextlib import suppress
from types import FrameType
from typing import Final
from urllib.parse import quote

import grpc
from vmsession.v1.core_pb2 import DrainRequest, DrainResponse
from vmsession.v1.core_pb2_grpc import CoreServiceStub

ENDED_SOME: Final = 3
INTERRUPTED: Final = 130
SILENCE: Final = 30
"""Seconds without a word after which core is taken for stuck: it tells its progress each five."""
END_LIMIT: Final = 30.0
"""Seconds for core to end what is left, once it began to."""


def drain(arguments: Namespace) -> int:
    """Run the command; the exit status."""
    socket = arguments.directory.absolute() / "core.sock"
    request = DrainRequest(within_seconds=arguments.within)
    core = -1
    signal.signal(signal.SIGALRM, _too_silent)
    signal.alarm(SILENCE)
    try:
        with grpc.insecure_channel(f"unix://{quote(str(socket))}") as channel:
            for progress in CoreServiceStub(channel).Drain(request):
                signal.alarm(SILENCE)
                if core < 0:
                    core = _process(progress.core_pid)
                _tell(progress)
                last = progress
        signal.alarm(0)
        return _ended(last, core)
    except TimeoutError:
        print(f"vmcore: {socket}: core said nothing for {SILENCE} s", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"vmcore: {socket}: {_told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vmcore: core goes on draining", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.alarm(0)
        if core >= 0:
            os.close(core)


def _too_silent(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def _process(pid: int) -> int:
    """A pidfd of core, -1 where it cannot be seen: then the end of the call has to do."""
    with suppress(OSError):
        return os.pidfd_open(pid)
    return -1


def _told(error: grpc.RpcError) -> str:
    return str(error.details()) if isinstance(error, grpc.Call) else str(error)


def _tell(progress: DrainResponse) -> None:
    if progress.over:
        return
    limit = ""
    if progress.HasField("remaining_seconds"):
        limit = f"; core ends them in {progress.remaining_seconds:.0f} s"
    print(f"vmcore: draining, sessions left: {progress.sessions}{limit}", flush=True)


def _ended(last: DrainResponse, core: int) -> int:
    if core >= 0 and not select.select([core], [], [], END_LIMIT)[0]:
        print(f"vmcore: core did not end within {END_LIMIT:.0f} s", file=sys.stderr)
        return 1
    if last.sessions:
        print(f"vmcore: core ended, and with it sessions: {last.sessions}")
        return ENDED_SOME
    print("vmcore: core ended; no session was left")
    return 0
