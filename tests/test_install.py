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


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``cwd``; ``environment`` is added to ours, less what would steer the build."""
    steering = ("CXX", "CXXFLAGS", "LDFLAGS", "PYTHONPATH", "LD_PRELOAD", "MAX_JOBS", "TWOLAYER_SANITIZE", "MAKEFLAGS")
    env = {name: value for name, value in os.environ.items() if name not in steering} | environment
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
    return {line.split()[-1] for line in result.stdout.splitlines() if "] C++ " in line}


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
