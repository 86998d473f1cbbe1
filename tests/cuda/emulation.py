"""The CUDA kernels, run on the CPU: compiled as C++ against ``shim``, which makes every thread of a block a fiber.

``TWOLAYER_SANITIZE=address,undefined`` makes an instrumented library, for a process that has ASan loaded.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cuda"
SANITIZERS = os.environ.get("TWOLAYER_SANITIZE", "")

FLAGS = ["-std=c++20", "-O1", "-fPIC", "-ffp-contract=off"]
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def compiler() -> list[str] | None:
    """The command of g++, whose C++ this is; None where there is none, and where it is not Linux's."""
    if sys.platform != "linux":
        return None
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    found = shutil.which(command[0])
    return [found, *command[1:]] if found else None


@contextmanager
def builds_alone(folder: Path) -> Iterator[None]:
    """Have other processes wait that would build there too; the folder is made."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file unlocks it


def build() -> Path:
    """Compile what changed; return the library."""
    folder = ROOT / "build" / "-".join(["emulated", *SANITIZERS.split(",")]).rstrip("-")
    with builds_alone(folder):
        return build_in(folder)


def build_in(folder: Path) -> Path:
    from ninja import BIN_DIR
    from ninja.ninja_syntax import Writer, escape

    sanitizers = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-g"] if SANITIZERS else []
    sources = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), *sorted(HERE.glob("*.cpp")), HERE / "shim/emulation.cpp"]
    library = folder / "libemulated.so"
    includes = [f"-I{path}" for path in (HERE / "shim", ROOT / "csrc")]
    with (folder / "build.ninja").open("w", encoding="utf-8") as file:
        ninja = Writer(file)
        ninja.variable("builddir", str(folder))
        ninja.variable("cxx", escape(shlex.join(compiler() or ["g++"])))
        ninja.variable("flags", escape(shlex.join(FLAGS + WARNINGS + sanitizers + includes)))
        ninja.variable("ldflags", escape(shlex.join(["-shared", *sanitizers])))
        ninja.rule("compile", "$cxx $flags -MD -MF $out.d -x c++ -c $in -o $out", depfile="$out.d", deps="gcc")
        ninja.rule("link", "$cxx $in -o $out $ldflags")
        objects = [str(folder / f"{source.stem}.o") for source in sources]
        for source, compiled in zip(sources, objects, strict=True):
            ninja.build(compiled, "compile", str(source))
        ninja.build(str(library), "link", objects)
    run = subprocess.run(
        [str(Path(BIN_DIR, "ninja")), "-f", str(folder / "build.ninja")], capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(f"the emulated kernels did not compile:\n{run.stdout}{run.stderr}")
    return library


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "in_features", "hidden", "out")]


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build()))
    for name in ("forward", "backward", "derive_sum"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


class Counts(NamedTuple):
    launches: int
    blocks: int
    clusters: int
    barriers: int  # __syncthreads, the most of any thread
    graphs: int  # launched


def take_counts(library_: ctypes.CDLL | None = None) -> Counts:
    """Return what was counted since the last call, in that library or this module's own."""
    counts = (ctypes.c_int64 * len(Counts._fields))()
    (library_ or library()).take_counts(counts)
    return Counts(*counts)


@contextmanager
def device(
    seed: int = 0,
    multiprocessors: int = 132,
    shared_bytes: int = 227 << 10,
    capability: int = 90,
    last_clusters: int = 0,
    skipped_barrier: int = -1,
) -> Iterator[None]:
    """Run kernels as on such a device. ``seed`` decides in which order blocks, and the threads of a block, run.

    Of each launch, no more than its ``last_clusters`` run; all of it where that is 0. In every thread, the barrier of
    number ``skipped_barrier`` does nothing.
    """
    _set_emulation(seed, multiprocessors, shared_bytes, capability, last_clusters, skipped_barrier)
    try:
        yield
    finally:
        _set_emulation(0, 132, 227 << 10, 90, 0, -1)


def _set_emulation(
    seed: int, multiprocessors: int, shared_bytes: int, capability: int, last_clusters: int, skipped_barrier: int
) -> None:
    rest = (multiprocessors, shared_bytes, capability, ctypes.c_int64(last_clusters), skipped_barrier)
    library().set_emulation(ctypes.c_uint64(seed), *rest)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*map(pointer, tensors))


def check() -> None:
    """Raise an error if a launch was refused."""
    text = ctypes.create_string_buffer(200)
    library().last_error(text, len(text))
    if text.value:
        raise RuntimeError(text.value.decode())


Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of NaN; of bytes, such as scratch, 0xff, which is NaN too."""
    return torch.full(shape, 0xFF if dtype is torch.uint8 else torch.nan, dtype=dtype)


def call_net(
    name: str,
    sizes: tuple[int, int, int, int],
    activation: int,
    arrays: Sequence[Tensor | None],
    dtype: torch.dtype,
    tf32: bool = False,
    empty: Empty = poisoned,
) -> None:
    """Run ``forward`` or ``backward`` on the arrays of its struct in params.h, in that order."""
    arguments = (DTYPES[dtype], tf32, Sizes(*sizes), activation, pointers(arrays))
    call_in_scratch(getattr(library(), name), arguments, empty)


def call_in_scratch(function: Callable[..., int], arguments: tuple[object, ...], empty: Empty = poisoned) -> None:
    scratch = empty((function(*arguments, None, False),), torch.uint8)
    function(*arguments, pointer(scratch), True)
    check()
