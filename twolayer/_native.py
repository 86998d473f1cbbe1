"""The one place that loads the compiled libraries, and that keeps the reason when one cannot be loaded.

Nothing here imports torch. Environment variables, read once, when this module is imported:
``TWOLAYER_DISABLE_NATIVE=1`` loads no library; ``TWOLAYER_REQUIRE_NATIVE=1`` makes a missing one an error where it is
first needed. ``TWOLAYER_NUM_THREADS`` is read at every call of :func:`num_threads`.
"""

from __future__ import annotations

import importlib
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


def _load(name: str) -> tuple[ModuleType | None, str | None]:
    """Return (the extension module, None) or (None, why it is not loaded and what to do about it)."""
    if _flag("TWOLAYER_DISABLE_NATIVE"):
        return None, "TWOLAYER_DISABLE_NATIVE is set; unset it to load the library"
    try:
        return importlib.import_module(f".{name}", __package__), None
    except ImportError as error:
        here = f"Python {platform.python_version()} on {sys.platform} {platform.machine()}"
        found = ", ".join(sorted(path.name for path in Path(__file__).parent.glob(f"{name}.*"))) or "none"
        return None, f"{error} ({here}; files built: {found}); reinstall twolayer where a C++20 compiler is installed"


core, core_error = _load("_core")
_require_native = _flag("TWOLAYER_REQUIRE_NATIVE")
_announced: set[str] = set()


def announce(message: str) -> None:
    """Issue ``message`` as a RuntimeWarning, the first time only."""
    if message not in _announced:
        _announced.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def get_core() -> ModuleType | None:
    """Return the module ``_core``; where it is not loaded, None and one RuntimeWarning with the reason and the cure.

    Raises ``ImportError`` with the same reason when ``TWOLAYER_REQUIRE_NATIVE=1``.
    """
    if core is None:
        message = f"twolayer's native library is not loaded: {core_error}"
        if _require_native:
            raise ImportError(message)
        announce(f"{message}. Its slower reference runs instead.")
    return core


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
    ``reason`` when it is not, and the ``path`` when it is). torch is not imported to find its version.
    """
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
            "_core": {"loaded": core is not None, "reason": core_error, "path": core.__file__ if core else None},
            "_cuda": {"loaded": False, "reason": "this version has no CUDA library", "path": None},
        },
    }


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
