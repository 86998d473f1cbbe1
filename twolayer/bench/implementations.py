"""Who takes part: one table of implementations, each with its program for every task that it can do.

A program is named, not imported: it runs in a worker process (``worker``), and most libraries are not installed
everywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Program(NamedTuple):
    """``module:attribute`` of a function (problem, start) → what it runs; with ``arguments``, of one that makes it."""

    path: str
    arguments: tuple[Any, ...] | None = None

    def load(self) -> Any:
        module, _, attribute = self.path.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        return found if self.arguments is None else found(*self.arguments)


@dataclass(frozen=True)
class Implementation:
    """One row; ``programs`` is by task: fit, forward, backward, step, infer."""

    name: str
    programs: Mapping[str, Program]
    package: str = "twolayer"  # that must be installed
    precision: str | None = None  # that of its products, where it is not the problem's dtype
    takes_all_cores: bool = False  # has no option for threads: it is kept to as many cores instead

    def absence(self) -> str | None:
        """Why it cannot run here, or None."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        if self.name == "predictor":
            from .. import TwoLayerNet

            if not hasattr(TwoLayerNet, "predictor"):
                return "this version's nets have no predictor()"
        return None


_NATIVE = "twolayer.programs.native:native_program"
_TORCH = "twolayer.programs.torch_loops"
_CALLS = "twolayer.programs.calls"
_NUMPY = "twolayer.programs.numpy_loop:numpy_program"
_TUTORIAL = "twolayer.bench.tutorial_regression"

IMPLEMENTATIONS = {
    row.name: row
    for row in (
        Implementation("twolayer.fit", {"fit": Program(_NATIVE, ())}),
        Implementation("twolayer.fit bfloat16", {"fit": Program(_NATIVE, ("bfloat16",))}, precision="bfloat16"),
        Implementation("8 × twolayer.fit", {"fit": Program("twolayer.programs.many:several_program", (False,))}),
        Implementation("twolayer.fit_many", {"fit": Program("twolayer.programs.many:several_program", (True,))}),
        Implementation("nn.Linear loop", {"fit": Program(f"{_TORCH}:by_hand_program")}, "torch"),
        Implementation("torch eager", {"fit": Program(f"{_TORCH}:sequential_program")}, "torch"),
        Implementation("torch autograd", {"fit": Program(f"{_TUTORIAL}:autograd_program")}, "torch"),
        Implementation("torch.compile", {"fit": Program(f"{_TORCH}:compiled_program")}, "torch"),
        Implementation(
            "JAX scan", {"fit": Program("twolayer.programs.jax_scan:scan_program")}, "jax", takes_all_cores=True
        ),
        Implementation("NumPy", {"fit": Program(_NUMPY, ("float32",))}, "numpy"),
        Implementation("NumPy float64", {"fit": Program(_NUMPY, ("float64",))}, "numpy", precision="float64"),
        Implementation("NumPy by hand", {"fit": Program(f"{_TUTORIAL}:numpy_program")}, "numpy"),
        Implementation("scikit-learn", {"fit": Program("twolayer.programs.scikit_learn:sklearn_program")}, "sklearn"),
        Implementation(
            "TwoLayerNet",
            {
                "forward": Program(f"{_CALLS}:forward", ("TwoLayerNet",)),
                "backward": Program(f"{_CALLS}:backward", ("TwoLayerNet",)),
                "step": Program(f"{_CALLS}:step", ("TwoLayerNet",)),
                "infer": Program(f"{_CALLS}:infer", ("TwoLayerNet",)),
            },
        ),
        Implementation(
            "nn.Sequential",
            {
                "forward": Program(f"{_CALLS}:forward", ("nn.Sequential",)),
                "backward": Program(f"{_CALLS}:backward", ("nn.Sequential",)),
                "step": Program(f"{_CALLS}:step", ("nn.Sequential",)),
                "infer": Program(f"{_CALLS}:infer", ("nn.Sequential",)),
            },
            "torch",
        ),
        Implementation("predictor", {"infer": Program(f"{_CALLS}:predict")}),
    )
}
