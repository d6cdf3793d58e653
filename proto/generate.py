"""Generates `proto/gen/vmsession/v1` from the .proto files. Run by `make proto`; a test proves that the
committed code is fresh."""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).parent


def generate(into: Path) -> None:
    """Writes the packages `vmsession` and `vmsession.v1` below the directory `into`."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("vmsession/v1/*.proto"))
    package = into / "vmsession"
    shutil.rmtree(package, ignore_errors=True)
    (package / "v1").mkdir(parents=True)
    arguments = [
        "protoc",
        f"-I{PROTO}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet:{into}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message stands above")
    for directory in (package, package / "v1"):
        (directory / "__init__.py").touch()
    (package / "py.typed").touch()


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO / "gen")
