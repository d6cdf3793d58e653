"""The container's recipe, carried out without a container runtime: its steps in roots of their own."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from dockerfile_parse import DockerfileParser

from tests.deploy.debian import bootstrap, chroot, copy_source, why_not
from tests.deploy.staging import DEPLOY
from tests.integration.waiting import eventually

RECIPE: Final = DEPLOY / "container" / "Containerfile"
MOUNTS: Final = 'mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" && shift && exec "$@"'


class Image:
    """What the steps of a stage made so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = "/"
        self.user = "0:0"
        self.words: dict[str, list[str]] = {}

    def take(self, name: str, value: str, context: Path, stages: dict[str, Image]) -> None:
        match name:
            case "RUN":
                ran = chroot(self.root, f"cd {self.directory}; {value}", self.user)
                assert ran.returncode == 0, ran.stdout + ran.stderr
            case "WORKDIR":
                self.directory = value
                (self.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self.copy(shlex.split(value), context, stages)
            case "USER":
                self.user = value
            case "ENTRYPOINT" | "CMD":
                self.words[name] = json.loads(value)

    def copy(self, words: list[str], context: Path, stages: dict[str, Image]) -> None:
        if words[0].startswith("--from="):
            context = stages[words.pop(0).removeprefix("--from=")].root
        source, target = context / words[0].lstrip("/"), Path(self.directory, words[1])
        inside = self.root / str(target).lstrip("/")
        if source.is_dir():
            subprocess.run(["cp", "-a", f"{source}/.", inside], check=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, inside)


def carried_out(directory: Path) -> Image:
    """The last stage of the recipe."""
    context, base = directory / "context", directory / "base"
    copy_source(context)
    bootstrap(base, "minbase", "ca-certificates")
    parser: Any = DockerfileParser(fileobj=io.BytesIO(RECIPE.read_bytes()))
    stages: dict[str, Image] = {}
    for step in parser.structure:
        if step["instruction"] == "FROM":
            name = step["value"].partition(" AS ")[2] or "final"
            image = stages[name] = Image(directory / name)
            subprocess.run(["cp", "-a", base, image.root], check=True)
        elif step["instruction"] != "COMMENT":
            image.take(step["instruction"], step["value"], context, stages)
    return stages["final"]


@pytest.mark.soak
def test_an_image_comes_of_it_that_serves(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    image = carried_out(tmp_path)
    run = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        MOUNTS,
        "sh",
    ]  # each becomes the next, and core at last
    enter = ["chroot", f"--userspec={image.user}", str(image.root)]
    core = subprocess.Popen(
        [*run, str(image.root), *enter, *image.words["ENTRYPOINT"], *image.words["CMD"]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def healthy() -> bool:
        assert core.poll() is None, core.communicate()[1]
        ask = "vmm health --socket /run/vmsession/core.sock"
        return chroot(image.root, ask, image.user).returncode == 0

    try:
        eventually(healthy, limit=60)
        core.terminate()
        assert core.wait(30) == 0
    finally:
        core.kill()
        core.communicate(timeout=30)
    assert not (image.root / "usr/bin/gcc").exists()
