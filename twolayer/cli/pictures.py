"""Pictures that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic import replacing
from ..reporting.style import PICTURE_DPI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(path: Path, figure: Figure) -> None:
    """Write ``figure`` to ``path``, in the format of its suffix. ``OSError`` when it cannot be written."""
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".") or "png", dpi=PICTURE_DPI)
