"""The one place that loads the compiled libraries, and that keeps the reason when one cannot be loaded.

``_core`` is loaded with this module, ``_cuda`` when a tensor on a GPU first needs it; importing this module imports no
torch. Environment variables, read once, when a library is looked for: ``TWOLAYER_DISABLE_NATIVE=1`` loads no library;
``TWOLAYER_REQUIRE_NATIVE=1`` makes a missing one an error where it is first needed. ``TWOLAYER_NUM_THREADS`` is read at
every call of :func:`num_threads`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from ._version import __version__


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def _load(name: str, needed: str = "a C++20 compiler") -> tuple[ModuleType | None, str | None]:
    """Return (the extension module, None) or (None, why it is not loaded and what to do about it)."""
    if _flag("TWOLAYER_DISABLE_NATIVE"):
        return None, "TWOLAYER_DISABLE_NATIVE is set; unset it to load the library"
    try:
        return importlib.import_module(f".{name}", __package__), None
    except ImportError as error:
        here = f"Python {platform.python_version()} on {sys.platform} {platform.machine()}"
        found = ", ".join(sorted(path.name for path in Path(__file__).parent.glob(f"{name}.*"))) or "none"
        return None, f"{error} ({here}; files built: {found}); reinstall twolayer where {needed} is installed"


core, core_error = _load("_core")
_cuda_found: tuple[ModuleType | None, str | None] | None = None  # None: nobody has asked for it yet
_require_native = _flag("TWOLAYER_REQUIRE_NATIVE")
_announced: set[str] = set()


def announce(message: str, stacklevel: int = 3) -> None:
    """Issue ``message`` as a RuntimeWarning, the first time only."""
    if message not in _announced:
        _announced.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


def get_core() -> ModuleType | None:
    """Return the module ``_core``; where it is not loaded, None and one RuntimeWarning with the reason and the cure.

    Raises ``ImportError`` with the same reason when ``TWOLAYER_REQUIRE_NATIVE=1``.
    """
    if core is None:
        _tell_that_missing(f"twolayer's native library is not loaded: {core_error}")
    return core


def get_cuda() -> ModuleType | None:
    """Return the module ``_cuda``, as :func:`get_core` does ``_core``."""
    module, reason = _cuda_found or cuda_state()
    if module is None:
        _tell_that_missing(f"twolayer's CUDA library is not loaded: {reason}")
    return module


def _tell_that_missing(message: str) -> None:
    if _require_native:
        raise ImportError(message)
    announce(f"{message}. Its slower reference runs instead.", stacklevel=4)


def cuda_state() -> tuple[ModuleType | None, str | None]:
    """Return (the module ``_cuda``, None), or (None, why it is not loaded and what to do about it).

    It is loaded by the first call, if torch has a GPU to run it on. Only where it was built is torch imported to tell.
    """
    global _cuda_found
    if _cuda_found is None:
        _cuda_found = _load_cuda()
    return _cuda_found


def _load_cuda() -> tuple[ModuleType | None, str | None]:
    if not _flag("TWOLAYER_DISABLE_NATIVE"):
        if importlib.util.find_spec("._cuda", __package__) is None:
            return None, "it was not built; reinstall twolayer with TWOLAYER_CUDA=1 where nvcc is installed"
        if reason := _why_torch_has_no_gpu():
            return None, reason
    module, reason = _load("_cuda", "nvcc")
    if module is not None and (reason := module.driver_problem()):
        return None, f"{reason}; update the driver, or reinstall twolayer with an older nvcc"
    return module, reason


def _why_torch_has_no_gpu() -> str | None:
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if torch.version.cuda is None:
        return f"this torch, {torch.__version__}, is built without CUDA; install one that has it"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is asked for below
        if torch.cuda.is_available():
            return None
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return f"torch can use no GPU: {str(error).partition(chr(10))[0]}"
    return "torch can use no GPU"


def num_threads() -> int:
    """Return ``TWOLAYER_NUM_THREADS``, or else the number of cores this process may run on."""
    text = os.environ.get("TWOLAYER_NUM_THREADS", "")
    if text:
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise ValueError(f"TWOLAYER_NUM_THREADS must be a positive integer; got {text!r}")
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def info() -> dict[str, Any]:
    """Return what is installed and what of it runs natively, as a dictionary that JSON can hold.

    ``versions`` (twolayer, python, torch, numpy, compiler), ``cpu``, ``threads`` (:func:`num_threads`), ``isa``
    (``in_use``, ``available`` on this CPU, ``compiled`` into the library) and ``native`` (per library: ``loaded``, the
    ``reason`` when it is not, and the ``path`` when it is). torch is imported only if ``_cuda`` was built, to find out
    whether there is a GPU for it.
    """
    cuda, cuda_error = cuda_state()
    return {
        "versions": {
            "twolayer": __version__,
            "python": platform.python_version(),
            "torch": _installed_version("torch"),
            "numpy": _installed_version("numpy"),
            "compiler": core.compiler() if core else None,
        },
        "cpu": _cpu_name(),
        "threads": num_threads(),
        "isa": {
            "in_use": core.isa() if core else None,
            "available": core.isas_available() if core else [],
            "compiled": core.isas_compiled() if core else [],
        },
        "native": {
            "_core": _library_state(core, core_error),
            "_cuda": _library_state(cuda, cuda_error),
        },
    }


def _library_state(module: ModuleType | None, reason: str | None) -> dict[str, Any]:
    return {"loaded": module is not None, "reason": reason, "path": module.__file__ if module else None}


def _installed_version(package: str) -> str | None:
    from importlib import metadata  # not above: it takes longer to import than all of twolayer

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
