"""`vmm diff`: one guest on two engines, until they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from vmm_client.cli.sizes import Size
from vmm_client.connection import connect
from vmm_client.diff import DiffMode, Guest, Lockstep, Side
from vmm_client.diff.report import lines, record
from vmm_client.errors import VmsessionError

DIFFER: Final = 3


class NotTwo(VmsessionError):  # noqa: N818 - see vmm_client.errors
    """The engines to compare are not two."""

    def __init__(self, engines: str) -> None:
        super().__init__(f"--engines {engines}: two names are compared", "give them as in soft,kvm")


def diff(  # noqa: PLR0913 - one for each option
    flat: Path,
    *,
    engines: str = "soft,kvm",
    mode: Literal["real", "protected", "long", "user"] = "real",
    step: Annotated[bool, Parameter(negative="--exits")] = True,
    limit: Annotated[int, Parameter(validator=Number(gte=1))] = 100_000,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=1 << 63))] = 0,
    memory: Size = 2 << 20,
    load_address: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    socket: str | None = None,
) -> int:
    """See COMMANDS in `vmm_client.cli.main`.

    Parameters
    ----------
    flat
        The binary, entered as `vmm run` does.
    engines
        The two to compare.
    mode
        The mode it is entered in: those of `vmm run`, or ring 3 of long mode.
    step
        Compare after every instruction, or after every exit.
    limit
        Stop after so many instructions or exits.
    seed
        What devices answer is made of it.
    memory
        The guest's memory, as in `64K` or `16M`.
    load_address
        Where it goes; by default 0x7c00 in real mode, 0x100000 otherwise.
    as_json
        Print a JSON object with everything.
    socket
        Core's socket; by default the one of $VMSESSION_SOCKET, yours, or the system's.
    """
    first, _, second = engines.partition(",")
    if not first or not second or "," in second:
        raise NotTwo(engines)
    guest = Guest(flat.read_bytes(), DiffMode(mode), load_address)
    with (
        connect(socket) as core,
        Side(core, first, memory) as one,
        Side(core, second, memory) as other,
    ):
        outcome = Lockstep(one, other).run(guest, step=step, limit=limit, seed=seed)
    unit = "instruction" if step else "exit"
    if as_json:
        print(json.dumps(record(outcome, unit), indent=2))
    else:
        print("\n".join(lines(outcome, unit)))
    return DIFFER if outcome.differences else 0
