"""Build the native modules: ninja compiles what changed, with the C++20 compiler at hand.

Environment:
    CXX, CXXFLAGS, LDFLAGS  the compiler (a launcher may stand before it: "ccache g++"), and flags that follow ours
    MAX_JOBS                the number of files compiled at once; ninja's own default otherwise
    TWOLAYER_SANITIZE       such as "address,undefined": an instrumented build, with objects in a folder of its own
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

COMPILERS = ("g++", "c++", "clang++")
SANITIZERS = os.environ.get("TWOLAYER_SANITIZE", "")

# No -march: each isa_*.cpp names its own target, so that one binary serves every CPU.
# No contraction: whether a product and a sum are fused is the kernels' choice, else bits depend on the compiler.
COMPILE_FLAGS = [
    *("-std=c++20", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
]
LINK_FLAGS = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared", "-pthread"]

if SANITIZERS:
    COMPILE_FLAGS += [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-O1", "-g1", "-fno-omit-frame-pointer"]
    LINK_FLAGS += [f"-fsanitize={SANITIZERS}"]
else:
    COMPILE_FLAGS += ["-O3", "-DNDEBUG"]


def extensions() -> list[Extension]:
    """The native modules of this platform."""
    if sys.platform == "win32":
        print("twolayer: no native library is built on Windows; the PyTorch reference runs instead", file=sys.stderr)
        return []
    sources = [str(path) for folder in ("cpu", "bindings") for path in Path("csrc", folder).glob("*.cpp")]
    return [Extension("twolayer._core", sorted(sources), include_dirs=["csrc"], language="c++")]


def find_compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, else the first of ``COMPILERS`` on the path."""
    if command := words_of("CXX"):
        if shutil.which(command[0]):
            return command
        raise PlatformError(f"twolayer needs a C++20 compiler: CXX is {command[0]!r}, and there is no such program")
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise PlatformError(f"twolayer needs a C++20 compiler: install one of {', '.join(COMPILERS)}, or set CXX")


def words_of(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def system_includes() -> list[str]:
    import pybind11  # not above: metadata and the source distribution do without it

    return ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]


def write_ninja_file(path: Path, extension: Extension, module: Path) -> None:
    """Write to ``path`` how ``extension``'s sources become ``module``; the objects go beside it."""
    from ninja.ninja_syntax import Writer, escape

    variables = {
        "cxx": find_compiler(),
        "includes": [f"-I{folder}" for folder in extension.include_dirs] + system_includes(),
        "cxxflags": COMPILE_FLAGS + words_of("ARCHFLAGS") + words_of("CXXFLAGS"),
        "ldflags": LINK_FLAGS + words_of("ARCHFLAGS") + words_of("LDFLAGS"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        ninja = Writer(file)
        ninja.variable("builddir", str(path.parent))
        for name, words in variables.items():
            ninja.variable(name, escape(shlex.join(words)))
        compile_command = "$cxx $cxxflags $includes -MD -MF $out.d -c $in -o $out"
        ninja.rule("compile", compile_command, description="C++ $in", depfile="$out.d", deps="gcc")
        ninja.rule("link", "$cxx $in -o $out $ldflags", description="LINK $out")
        objects = [str(path.parent / source) + ".o" for source in extension.sources]
        for source, compiled in zip(extension.sources, objects, strict=True):
            ninja.build(compiled, "compile", source)
        ninja.build(str(module), "link", objects)


def run_ninja(path: Path) -> None:
    from ninja import BIN_DIR

    jobs = words_of("MAX_JOBS")
    command = [str(Path(BIN_DIR, "ninja")), "-f", str(path), *(["-j", *jobs] if jobs else [])]
    if code := subprocess.run(command).returncode:
        raise CompileError(f"twolayer did not compile: ninja ended with status {code}; its reason stands above")


class NinjaBuild(build_ext):
    """``build_ext`` with ninja deciding what is stale, by the headers each object read and the command that made it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # always copy: by date alone, distutils would keep a sanitizer build's newer module

    def build_extension(self, extension: Extension) -> None:
        # Not self.build_temp, which is a new folder in every editable install.
        variant = "-".join([sysconfig.get_config_var("SOABI"), *SANITIZERS.split(",")]).rstrip("-")
        folder = Path("build", "native", variant, extension.name)
        target = Path(self.get_ext_fullpath(extension.name))
        write_ninja_file(folder / "build.ninja", extension, folder / target.name)
        run_ninja(folder / "build.ninja")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(folder / target.name), str(target))


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
