"""Build the native modules: ninja compiles what changed, with the C++20 compiler at hand and, if there is one, nvcc.

Environment:
    CXX, CXXFLAGS, LDFLAGS  the compiler (a launcher may stand before it: "ccache g++"), and flags that follow ours
    MAX_JOBS                the number of files compiled at once; ninja's own default otherwise
    TWOLAYER_SANITIZE       such as "address,undefined": an instrumented build, with objects in a folder of its own
    TWOLAYER_CUDA           auto: _cuda is built where nvcc 12 or newer is found; 1: it must be; 0: it is not
    TWOLAYER_CUDA_ARCHS     the GPUs that machine code is made for, such as "90a"; those of CUDA_ARCHS otherwise
    CUDACXX, CUDA_HOME      nvcc, or the toolkit that it is in; otherwise the one on the path
    NVCCFLAGS, NVCC_CCBIN   flags that follow ours, and the C++ compiler that nvcc runs (g++ otherwise)
"""

from __future__ import annotations

import os
import re
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

# Machine code for these (sm_80 also runs on 8.6 and 8.9, and so on), and PTX of the newest for what comes after it.
CUDA_ARCHS = ("80", "90a", "100", "120")
NVCC_FLAGS = [
    *("-std=c++20", "-O3", "-DNDEBUG", "-fmad=false", "--threads=2"),
    *("-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden", "-Xcompiler=-Wall", "-Xcompiler=-Wno-psabi"),
]
NVCC_LINK_FLAGS = ["-shared", "--cudart=static"]  # so that importing it needs neither toolkit nor driver


def extensions() -> list[Extension]:
    """The native modules of this platform."""
    if sys.platform == "win32":
        announce("no native library is built on Windows; the PyTorch reference runs instead")
        return []
    bindings = sources("bindings/cuda*.cpp")
    core = [path for path in sources("cpu/*.cpp", "bindings/*.cpp") if path not in bindings]
    modules = [Extension("twolayer._core", core, include_dirs=["csrc"], language="c++")]
    if builds_cuda():
        cuda = [*sources("cuda/*.cu"), *bindings]
        modules.append(Extension("twolayer._cuda", cuda, include_dirs=["csrc"], language="c++"))
    return modules


def sources(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


def announce(message: str) -> None:
    print(f"twolayer: {message}", file=sys.stderr)


def builds_cuda() -> bool:
    """Whether ``_cuda`` is built. Whether this machine has a GPU makes no difference."""
    choice = os.environ.get("TWOLAYER_CUDA") or "auto"
    if choice not in ("auto", "0", "1"):
        raise PlatformError(f"TWOLAYER_CUDA must be auto, 0 or 1; got {choice!r}")
    if choice == "auto":
        if SANITIZERS or not find_nvcc():
            return False
        if problem := nvcc_problem(find_nvcc()):
            announce(f"no CUDA library is built: {problem}")
            return False
    return choice != "0"


def find_nvcc() -> list[str]:
    """The command of nvcc: ``$CUDACXX``, else in ``$CUDA_HOME``, on the path, or where it is installed by default."""
    if command := words_of("CUDACXX"):
        return command
    folders = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", "")]
    candidates = [*(f"{folder}/bin/nvcc" for folder in folders if folder), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(([found] for name in candidates if (found := shutil.which(name))), [])


def nvcc_problem(nvcc: list[str]) -> str | None:
    """Why this nvcc cannot compile the kernels, or None."""
    if not nvcc or not shutil.which(nvcc[0]):
        found = (
            f"CUDACXX is {nvcc[0]!r}, and there is no such program" if nvcc else "none is on the path or in CUDA_HOME"
        )
        return f"the CUDA kernels need nvcc: {found}; TWOLAYER_CUDA=0 builds without them"
    version = subprocess.run([*nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.\d+", version)
    if release and int(release[1]) >= 12:
        return None
    found = release[0] if release else "one that does not tell its release"
    return f"the CUDA kernels need nvcc of release 12.0 or newer; {nvcc[0]} is {found}"


def gpu_code(nvcc: list[str]) -> list[str]:
    """The options for machine code of the GPUs that this nvcc knows, and for PTX of the newest of them."""
    wanted = os.environ.get("TWOLAYER_CUDA_ARCHS", "").replace(",", " ").split() or CUDA_ARCHS
    listed = subprocess.run([*nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    known = [arch for arch in wanted if "sm_" + arch.rstrip("af") in listed]
    if missing := [f"sm_{arch}" for arch in wanted if arch not in known]:
        announce(f"{nvcc[0]} makes no code for {', '.join(missing)}: left out")
    if not known:
        raise PlatformError(f"TWOLAYER_CUDA_ARCHS names no GPU that {nvcc[0]} knows; it knows {', '.join(listed)}")
    newest = known[-1].rstrip("af")  # PTX with such a suffix would run on that GPU only
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known]
    return [*code, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


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

    includes = [f"-I{folder}" for folder in extension.include_dirs]
    variables = {
        "cxx": find_compiler(),
        "includes": includes + system_includes(),
        "cxxflags": COMPILE_FLAGS + words_of("ARCHFLAGS") + words_of("CXXFLAGS"),
        "ldflags": LINK_FLAGS + words_of("ARCHFLAGS") + words_of("LDFLAGS"),
    }
    has_cuda = any(source.endswith(".cu") for source in extension.sources)
    if has_cuda:
        nvcc = find_nvcc()
        if problem := nvcc_problem(nvcc):
            raise PlatformError(problem)
        variables["nvcc"] = nvcc
        variables["nvccflags"] = NVCC_FLAGS + gpu_code(nvcc) + includes + words_of("NVCCFLAGS")
        variables["nvccldflags"] = NVCC_LINK_FLAGS
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        ninja = Writer(file)
        ninja.variable("builddir", str(path.parent))
        for name, words in variables.items():
            ninja.variable(name, escape(shlex.join(words)))
        compile_command = "$cxx $cxxflags $includes -MD -MF $out.d -c $in -o $out"
        ninja.rule("compile", compile_command, description="C++ $in", depfile="$out.d", deps="gcc")
        ninja.rule("link", "$cxx $in -o $out $ldflags", description="LINK $out")
        if has_cuda:
            compile_command = "$nvcc $nvccflags -MD -MF $out.d -c $in -o $out"
            ninja.rule("compile_cuda", compile_command, description="CUDA $in", depfile="$out.d", deps="gcc")
            ninja.rule("link_cuda", "$nvcc $in -o $out $nvccldflags", description="LINK $out")
        objects = [str(path.parent / source) + ".o" for source in extension.sources]
        for source, compiled in zip(extension.sources, objects, strict=True):
            ninja.build(compiled, "compile_cuda" if source.endswith(".cu") else "compile", source)
        ninja.build(str(module), "link_cuda" if has_cuda else "link", objects)


def run_ninja(path: Path, cure: str) -> None:
    from ninja import BIN_DIR

    jobs = words_of("MAX_JOBS")
    command = [str(Path(BIN_DIR, "ninja")), "-f", str(path), *(["-j", *jobs] if jobs else [])]
    if code := subprocess.run(command).returncode:
        raise CompileError(f"twolayer did not compile: ninja ended with status {code}; its reason stands above{cure}")


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
        cure = "; TWOLAYER_CUDA=0 builds without the CUDA library" if extension.name == "twolayer._cuda" else ""
        run_ninja(folder / "build.ninja", cure)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(folder / target.name), str(target))


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
