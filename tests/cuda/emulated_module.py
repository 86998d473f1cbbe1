"""The module ``_cuda`` itself, for tensors on the CPU: its binding, linked with the emulated kernels."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import shlex
import subprocess
import sysconfig
import warnings
from pathlib import Path
from types import ModuleType

import emulation
import torch
from pytest import MonkeyPatch

from twolayer import _cuda_ops, _native, _ops

SOURCES = sorted((emulation.ROOT / "csrc" / "bindings").glob("cuda*.cpp"))
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-DTWOLAYER_EMULATED", "-Wall", "-Wextra", "-Werror"]


def build() -> Path:
    """Compile what changed; return the extension module."""
    kernels = emulation.build().parent
    with emulation.builds_alone(kernels / "module"):
        return build_in(kernels / "module", kernels)


def build_in(folder: Path, kernels: Path) -> Path:
    import pybind11
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer, escape

    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    sanitizers = [f"-fsanitize={emulation.SANITIZERS}", "-fno-sanitize-recover=all"] if emulation.SANITIZERS else []
    includes = [f"-I{emulation.ROOT / 'csrc'}"]
    includes += ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
    with (folder / "build.ninja").open("w", encoding="utf-8") as file:
        ninja = Writer(file)
        ninja.variable("builddir", str(folder))
        ninja.variable("cxx", escape(shlex.join(emulation.compiler() or ["g++"])))
        ninja.variable("flags", escape(shlex.join(FLAGS + sanitizers + includes)))
        ninja.variable("ldflags", escape(shlex.join(["-shared", *sanitizers])))
        ninja.rule("compile", "$cxx $flags -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("link", "$cxx $in -o $out $ldflags")
        bindings = [str(folder / f"{source.stem}.o") for source in SOURCES]
        for source, compiled in zip(SOURCES, bindings, strict=True):
            ninja.build(compiled, "compile", str(source))
        ninja.build(str(module), "link", [*bindings, *map(str, sorted(kernels.glob("*.o")))])
    command = [str(Path(BIN_DIR, "ninja")), "-f", str(folder / "build.ninja")]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the emulated module did not compile:\n{run.stdout}{run.stderr}")
    return module


@functools.cache
def load() -> ModuleType:
    path = build()
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(path))
    spec = importlib.util.spec_from_loader("_cuda", loader, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def put_in_place(monkeypatch: MonkeyPatch) -> torch.library.Library:
    """Have tensors on the CPU go all the way that those on CUDA go, until the library returned is destroyed."""
    monkeypatch.setattr(_native, "_cuda_found", (load(), None))
    monkeypatch.setattr(_cuda_ops, "_device_type", "cpu")
    monkeypatch.setattr(_ops, "_core", None)
    override = torch.library.Library("twolayer", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is meant to override
        for name in ("forward", "forward_saved", "backward"):
            override.impl(name, getattr(_cuda_ops, name), "CPU", allow_override=True)
    return override
