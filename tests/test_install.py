"""The build: what it needs, what it compiles again, what it says when it cannot; and what a fresh install holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import IN_SEVERAL_PROCESSES, locked

pytest.importorskip("pybind11", reason="building needs pybind11")
pytest.importorskip("ninja", reason="building needs ninja")

ROOT = Path(__file__).resolve().parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
BUILD_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "Makefile", "constraints.txt", "LICENSE", "README.md")

NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on the path")

SMALL_CORE = {
    "csrc/params.h": "inline int answer() { return 42; }\n",
    "csrc/cpu/uses_params.cpp": '#include "params.h"\nint twice() { return 2 * answer(); }\n',
    "csrc/cpu/alone.cpp": "int alone() { return 1; }\n",
    "csrc/bindings/core.cpp": """
        #include <Python.h>
        static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_core", nullptr, 0, nullptr};
        PyMODINIT_FUNC PyInit__core() { return PyModule_Create(&definition); }
        """,
    "twolayer/__init__.py": "",
}
SMALL_CUDA = {
    "csrc/cuda/kernels.h": "int twice(int);\n",
    "csrc/cuda/kernels.cu": """
        #include "cuda/kernels.h"
        __global__ void kernel(int* number) { *number *= 2; }
        int twice(int number) { return 2 * number; }
        """,
    "csrc/bindings/cuda.cpp": """
        #include <Python.h>
        #include "cuda/kernels.h"
        static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cuda", nullptr, 0, nullptr};
        PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&definition); }
        """,
}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``cwd``; ``environment`` is added to ours, less what would steer the build."""
    steering = (
        "CXX",
        "CXXFLAGS",
        "LDFLAGS",
        "PYTHONPATH",
        "LD_PRELOAD",
        "MAX_JOBS",
        "MAKEFLAGS",
        "CUDACXX",
        "CUDA_HOME",
    )
    inherited = {name: value for name, value in os.environ.items() if name not in steering}
    env = {name: value for name, value in inherited.items() if not name.startswith("TWOLAYER_")}
    env |= {"TWOLAYER_CUDA": "0"} | environment
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", cwd=tree, **environment)


def copy_build_files(tree: Path) -> None:
    for name in BUILD_FILES:
        if (ROOT / name).exists():  # the README is no part of an unpacked source distribution's requirements
            shutil.copy(ROOT / name, tree)


def compiled(result: subprocess.CompletedProcess[str]) -> set[str]:
    """The sources that ninja said it compiled in a run that succeeded."""
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if "] C++ " in line or "] CUDA " in line]
    return {line.split()[-1] for line in lines}


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A project with our build files and a tiny core, already built."""
    copy_build_files(tmp_path)
    (tmp_path / "twolayer").mkdir()
    shutil.copy(ROOT / "twolayer" / "_version.py", tmp_path / "twolayer")
    for name, text in SMALL_CORE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert compiled(build(tmp_path)) == {name for name in SMALL_CORE if name.endswith(".cpp")}
    return tmp_path


def test_nothing_changed_compiles_nothing(small_tree: Path) -> None:
    assert compiled(build(small_tree)) == set()


@pytest.mark.parametrize(
    ("changed", "dependents"),
    [("csrc/cpu/alone.cpp", {"csrc/cpu/alone.cpp"}), ("csrc/params.h", {"csrc/cpu/uses_params.cpp"})],
)
def test_a_change_compiles_its_dependents_only(small_tree: Path, changed: str, dependents: set[str]) -> None:
    (small_tree / changed).write_text(SMALL_CORE[changed] + "// changed\n")
    assert compiled(build(small_tree)) == dependents


def test_an_editable_install_compiles_only_what_changed(small_tree: Path) -> None:
    (small_tree / "csrc/cpu/alone.cpp").touch()
    script = "from setuptools import build_meta; build_meta.build_editable('wheels')"
    assert compiled(run(sys.executable, "-c", script, cwd=small_tree)) == {"csrc/cpu/alone.cpp"}


def test_a_sanitizer_build_stays_apart(small_tree: Path) -> None:
    module = next((small_tree / "twolayer").glob("_core*"))
    plain = module.read_bytes()
    assert len(compiled(build(small_tree, TWOLAYER_SANITIZE="undefined"))) == 3
    assert module.read_bytes() != plain
    assert compiled(build(small_tree)) == set()
    assert module.read_bytes() == plain


def test_no_compiler_is_one_line(small_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty_path = str(tmp_path_factory.mktemp("bin"))
    result = build(small_tree, PATH=empty_path)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "error: twolayer needs a C++20 compiler: install one of g++, c++, clang++, or set CXX"
    )
    assert "Traceback" not in result.stderr


def test_unknown_cxx_is_named(small_tree: Path) -> None:
    result = build(small_tree, CXX="no-such-compiler -O0")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "error: twolayer needs a C++20 compiler: CXX is 'no-such-compiler', and there is no such program"
    )


def test_a_compile_error_is_shown(small_tree: Path) -> None:
    (small_tree / "csrc/cpu/alone.cpp").write_text("int alone() { return undeclared; }\n")
    result = build(small_tree)
    assert result.returncode != 0
    assert "undeclared" in result.stdout
    assert "error: twolayer did not compile" in result.stderr.splitlines()[-1]


# CUDA


@pytest.fixture
def cuda_tree(small_tree: Path) -> Path:
    """The small project with a kernel and its binding, which are not built."""
    (small_tree / "csrc" / "cuda").mkdir()
    for name, text in SMALL_CUDA.items():
        (small_tree / name).write_text(text)
    return small_tree


def build_cuda(tree: Path, choice: str = "1", **environment: str) -> subprocess.CompletedProcess[str]:
    return build(tree, TWOLAYER_CUDA=choice, **environment)


def modules_of(tree: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in (tree / "twolayer").glob("*.so"))


def fake_nvcc(folder: Path, release: str = "13.0", code: str = "sm_80 sm_90 sm_100 sm_120") -> str:
    """An nvcc that answers questions about itself, and otherwise is g++ with the arguments that this knows."""
    program = folder / "nvcc"
    program.write_text(
        f"""#!/usr/bin/env python3
import os, sys
if "--version" in sys.argv:
    print("Cuda compilation tools, release {release}, V{release}.1")
elif "--list-gpu-code" in sys.argv:
    print("{code}")
else:
    options = [a.removeprefix("-Xcompiler=") for a in sys.argv[1:] if not a.startswith("--") and "gencode" not in a]
    print(*(a.rpartition("code=")[2] for a in sys.argv if "gencode" in a))
    if any(a.endswith(".cu") for a in sys.argv):
        options = ["-D__global__=", "-x", "c++", *options]
    os.execvp("g++", ["g++", *(a for a in options if a != "-fmad=false")])
"""
    )
    program.chmod(0o755)
    return str(program)


@needs_nvcc
def test_cuda_is_built_where_nvcc_is_and_again_only_what_changed(cuda_tree: Path) -> None:
    quick = {"TWOLAYER_CUDA_ARCHS": "90a"}
    assert compiled(build_cuda(cuda_tree, "auto", **quick)) == {"csrc/bindings/cuda.cpp", "csrc/cuda/kernels.cu"}
    assert modules_of(cuda_tree) == ["_core", "_cuda"]
    result = run(sys.executable, "-c", "import twolayer._cuda", cwd=cuda_tree)
    assert result.returncode == 0, result.stderr
    assert compiled(build_cuda(cuda_tree, **quick)) == set()
    (cuda_tree / "csrc/cuda/kernels.h").write_text(SMALL_CUDA["csrc/cuda/kernels.h"] + "// changed\n")
    assert compiled(build_cuda(cuda_tree, **quick)) == {"csrc/bindings/cuda.cpp", "csrc/cuda/kernels.cu"}


@needs_nvcc
def test_a_cuda_error_is_shown_with_a_way_out(cuda_tree: Path) -> None:
    (cuda_tree / "csrc/cuda/kernels.cu").write_text("__global__ void kernel() { undeclared(); }\n")
    result = build_cuda(cuda_tree, "auto", TWOLAYER_CUDA_ARCHS="90a")
    assert result.returncode != 0
    assert "undeclared" in result.stdout
    assert result.stderr.splitlines()[-1].endswith("TWOLAYER_CUDA=0 builds without the CUDA library")


def test_cuda_can_be_left_out(cuda_tree: Path) -> None:
    assert compiled(build_cuda(cuda_tree, "0", CUDACXX=fake_nvcc(cuda_tree))) == set()
    assert modules_of(cuda_tree) == ["_core"]


def test_a_sanitizer_build_leaves_cuda_out(cuda_tree: Path) -> None:
    result = build_cuda(cuda_tree, "auto", CUDACXX=fake_nvcc(cuda_tree), TWOLAYER_SANITIZE="undefined")
    assert "csrc/cuda/kernels.cu" not in compiled(result)


def test_cuda_that_is_required_needs_nvcc(cuda_tree: Path) -> None:
    result = build_cuda(cuda_tree, CUDACXX="no-such-nvcc")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "error: the CUDA kernels need nvcc: CUDACXX is 'no-such-nvcc', and there is no such program; "
        "TWOLAYER_CUDA=0 builds without them"
    )


def test_cuda_choice_that_is_none_is_refused(cuda_tree: Path) -> None:
    result = build_cuda(cuda_tree, "yes")
    assert result.returncode != 0
    assert "TWOLAYER_CUDA must be auto, 0 or 1; got 'yes'" in result.stderr


def test_an_nvcc_too_old_is_passed_over_aloud_unless_required(cuda_tree: Path) -> None:
    old = {"CUDACXX": fake_nvcc(cuda_tree, release="11.8")}
    result = build_cuda(cuda_tree, "auto", **old)
    assert compiled(result) == set()
    reason = f"the CUDA kernels need nvcc of release 12.0 or newer; {old['CUDACXX']} is release 11.8"
    assert f"twolayer: no CUDA library is built: {reason}" in result.stderr
    result = build_cuda(cuda_tree, **old)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == f"error: {reason}"


@pytest.mark.parametrize(
    ("listed", "chosen", "code", "missing"),
    [
        ("sm_80 sm_90 sm_100 sm_120", "", "sm_80 sm_90a sm_100 sm_120 compute_120", ""),
        ("sm_75 sm_80 sm_90", "", "sm_80 sm_90a compute_90", "sm_100, sm_120"),
        ("sm_80 sm_90 sm_100", "90a", "sm_90a compute_90", ""),
        ("sm_80 sm_90", "80, 70", "sm_80 compute_80", "sm_70"),
    ],
)
def test_cuda_code_is_made_for_the_gpus_that_nvcc_knows(
    listed: str, chosen: str, code: str, missing: str, cuda_tree: Path
) -> None:
    nvcc = fake_nvcc(cuda_tree, code=listed)
    result = build_cuda(cuda_tree, CUDACXX=nvcc, TWOLAYER_CUDA_ARCHS=chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    assert code in result.stdout.splitlines()
    assert (f"{nvcc} makes no code for {missing}: left out" in result.stderr) == bool(missing)


def test_cuda_home_is_where_nvcc_is_found(cuda_tree: Path) -> None:
    (cuda_tree / "toolkit" / "bin").mkdir(parents=True)
    fake_nvcc(cuda_tree / "toolkit" / "bin")
    assert "csrc/cuda/kernels.cu" in compiled(build_cuda(cuda_tree, "auto", CUDA_HOME=str(cuda_tree / "toolkit")))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_without_python_is_one_line(small_tree: Path) -> None:
    result = run("make", "test", "PYTHON=no-such-python", cwd=small_tree)
    assert result.returncode != 0
    assert result.stderr.splitlines()[0] == "twolayer needs Python 3.10 or newer: no no-such-python found"
    assert not (small_tree / ".venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_with_an_old_python_is_one_line(small_tree: Path) -> None:
    old = small_tree / "old-python"  # this Python, told that it is an older one
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); $2"\n')
    old.chmod(0o755)
    result = run("make", "test", f"PYTHON={old}", cwd=small_tree)
    assert result.returncode != 0
    assert result.stderr.splitlines()[0].startswith(f"twolayer needs Python 3.10 or newer: {old} is ")


def test_source_distribution_holds_what_a_build_needs(small_tree: Path) -> None:
    script = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    result = run(sys.executable, "-c", script, cwd=small_tree)
    assert result.returncode == 0, result.stdout + result.stderr
    with tarfile.open(small_tree / "dist" / result.stdout.splitlines()[-1]) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert files >= {*SMALL_CORE, "setup.py", "pyproject.toml", "twolayer/_version.py", "LICENSE"}
    assert not [name for name in files if name.startswith("build") or name.endswith((".so", ".o"))]


def without_torch(folder: Path) -> str:
    """A folder for the path, from which the only torch cannot be imported."""
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('torch must not be imported here')\n")
    return str(folder)


def build_wheel(folder: Path) -> Path:
    """The real tree's wheel, built in ``folder`` without torch."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    copy_build_files(tree)
    for name in ("csrc", "twolayer"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder)
    result = run(*PIP, "wheel", *options, tree, cwd=folder, PYTHONPATH=without_torch(folder / "blocked"))
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a wheel is installed: the one that TWOLAYER_WHEEL names, else one that is built now."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if IN_SEVERAL_PROCESSES else base) / "installed"
    with locked(folder.with_name("installing"), exclusive=True):
        if not (folder / "site").exists():
            named = os.environ.get("TWOLAYER_WHEEL")
            wheel = Path(named).resolve() if named else build_wheel(folder)
            options = ("--no-deps", "--no-index", "--target", folder / "site")
            result = run(*PIP, "install", *options, wheel, cwd=base)
            assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


@pytest.mark.slow
def test_an_installed_wheel_is_whole(site: Path, tmp_path: Path) -> None:
    script = (
        "import importlib.metadata, twolayer._core, twolayer._version as version;"
        "print(twolayer._core.__file__, importlib.metadata.version('twolayer'), version.__version__)"
    )
    path = os.pathsep.join([str(site), without_torch(tmp_path / "blocked")])
    result = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    module, installed, declared = result.stdout.split()
    assert Path(module).parent == site / "twolayer"
    assert installed == declared
    assert (site / "twolayer" / "py.typed").exists()
    assert not list(site.glob("csrc*"))
    sources = {path.relative_to(ROOT) for path in ROOT.glob("twolayer/**/*.py")}
    assert {path.relative_to(site) for path in site.glob("twolayer/**/*.py")} == sources


@pytest.mark.slow
def test_a_users_strict_program_has_types(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = shutil.copy(ROOT / "tests" / "typed_program.py", tmp_path)
    # Under lint's configuration and cache torch need not be gone through again, which takes half a minute.
    options = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache")
    result = run(sys.executable, "-m", "mypy", *options, program, cwd=tmp_path, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stdout + result.stderr
    result = run(sys.executable, program, cwd=tmp_path, PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
