"""Numbers on the command line, within their bounds."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Revision = Annotated[int, Parameter(validator=Number(gte=0, lt=1 << 64))]
Uid = Annotated[int, Parameter(validator=Number(gte=0, lt=1 << 32))]
Count = Annotated[int, Parameter(validator=Number(gte=1, lt=1 << 32))]
Seconds = Annotated[float, Parameter(validator=Number(gte=0.1, lte=3600))]
