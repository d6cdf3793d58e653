"""What pyproject.toml cannot declare: the C extension and the engine executables."""

import importlib.util
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ENGINE_DIRECTORY = Path("core_service/engine/native")


def load_recipe():
    """core_service/engine/native/build.py, by path: nothing of ours can be imported yet."""
    spec = importlib.util.spec_from_file_location(
        "vmsession_engine_build", ROOT / ENGINE_DIRECTORY / "build.py"
    )
    recipe = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recipe
    spec.loader.exec_module(recipe)
    return recipe


class BuildNative(build_ext):
    """The extension, then the engines beside the Python code, in the tree or in the wheel."""

    def run(self):
        recipe = load_recipe()
        try:
            recipe.compiler()
            self.require_python_headers(recipe)
            super().run()
            base = ROOT if self.inplace else Path(self.build_lib)
            for engine in recipe.ENGINES:
                recipe.build(engine, base / ENGINE_DIRECTORY / "bin")
        except recipe.BuildError as error:
            sys.exit(f"error: {error}")

    @staticmethod
    def require_python_headers(recipe):
        header = Path(sysconfig.get_path("include")) / "Python.h"
        if not header.exists():
            raise recipe.BuildError(f"no {header}; install Python's headers (python3-dev)")


setup(
    ext_modules=[
        Extension(
            "dataspace._page",
            sources=["dataspace/_page.c", "dataspace/_exit_head.c"],
            depends=[
                "proto/vcpu_page.h",
                "dataspace/native/page_wait.h",
                "dataspace/native/waiter.h",
            ],
            include_dirs=["proto", "dataspace/native"],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"],
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
