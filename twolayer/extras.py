"""Packages that only parts of twolayer need: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, purpose: str, extra: str) -> Any:
    """Import and return ``module``; ``ImportError`` says that ``purpose`` needs it and names the extra that has it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(name := module.partition(".")[0], name)
        raise ImportError(f"{purpose} needs {package}: pip install 'twolayer[{extra}]' ({error})") from error
