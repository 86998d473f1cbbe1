"""The look of pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

PICTURE_DPI = 160
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.dpi": PICTURE_DPI,
}
P = ParamSpec("P")
Result = TypeVar("Result")


def styled(make: Callable[P, Result]) -> Callable[P, Result]:
    """Have ``make`` draw in this style, whatever the style outside is."""

    @functools.wraps(make)
    def made(*arguments: P.args, **options: P.kwargs) -> Result:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return make(*arguments, **options)

    return made
