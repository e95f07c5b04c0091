"""Builds the native engine where there is a C++ compiler; without one, or where it fails, qinco uses torch instead.

One shared library holds the kernels of every instruction set, each compiled with its own options and chosen when the
program runs. `QINCO_NATIVE_FLAGS` adds options for compiling and linking, such as those of the sanitizers. A wheel
serves every Python 3 of its platform: nothing in it is compiled against Python.
"""

import os
import shlex
import subprocess
from pathlib import Path
from sysconfig import get_platform

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FOLDER = Path("src/qinco/native")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized", "-fno-math-errno"]
FLAGS += ["-include", str(FOLDER / "symbols.h")]
IS_X86 = get_platform().endswith(("x86_64", "amd64"))
FLAGS += [] if IS_X86 else ["-Wno-unused-parameter"]  # the level, where there is one only
X86 = {
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16"],
}
# Linked in this order: of code that several objects share, the copy that every processor can run is taken.
LEVELS = {"engine": [], "pool": [], "portable": []} | (X86 if IS_X86 else {})
SOURCES = [FOLDER / f"{name}.cpp" for name in LEVELS]


class BuildEngine(build_ext):
    """Compiles plain C++ into `engine.so`, without Python's headers: it is loaded through ctypes."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, extension: Extension) -> None:
        try:
            self._compile(extension)
        except (OSError, subprocess.CalledProcessError) as error:  # an optional extension may fail in this way only
            self.distribution.ext_modules = []  # what is built is for every platform
            raise CompileError(f"the native engine was not built: {error}") from error

    def _compile(self, extension: Extension) -> None:
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        more = shlex.split(os.environ.get("QINCO_NATIVE_FLAGS", ""))
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        running = []
        for name, flags in LEVELS.items():
            command = [*compiler, *FLAGS, *flags, *more, "-c", f"{FOLDER / name}.cpp", "-o", str(objects / f"{name}.o")]
            running.append((command, subprocess.Popen(command)))
        for command, process in running:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = [str(objects / f"{name}.o") for name in LEVELS]
        subprocess.run([*compiler, "-shared", *more, *linked, "-o", str(target), "-pthread"], check=True)


class TagWheel(bdist_wheel):
    """Tags a wheel with an engine py3-none-PLATFORM, and one without py3-none-any."""

    def run_command(self, command: str) -> None:
        super().run_command(command)
        if command == "build":
            self.root_is_pure = not self.distribution.has_ext_modules()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


engine = Extension(
    "qinco.native.engine",
    sources=[str(source) for source in SOURCES],
    depends=sorted(map(str, FOLDER.glob("*.h"))),
    optional=True,
)
setup(ext_modules=[engine], cmdclass={"build_ext": BuildEngine, "bdist_wheel": TagWheel})
