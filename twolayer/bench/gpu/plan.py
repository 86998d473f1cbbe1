"""How much is measured, and what a case finds."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from ..cases.modules import SHAPES
from ..document import Verdict
from ..targets import TARGETS
from .clock import Clock
from .programs import Shape

MNIST: Shape = (64, 784, 100, 10)


@dataclass
class Plan:
    """How much of everything. ``quick()`` is for a look, and for tests."""

    clock: Clock
    grid: tuple[Shape, ...] = SHAPES
    grid_precisions: tuple[str, ...] = ("float32", "bfloat16")
    batches: tuple[int, ...] = (1, 4, 16, 64, 256)
    rows: int = 1 << 20  # of memory-bound shapes
    sweep: tuple[tuple[int, ...], ...] = ((16, 64, 256, 1024, 4096), (64, 784), (64, 256, 1024, 4096), (10, 64, 128))
    narrow: tuple[Shape, ...] = (
        (1 << 20, 32, 16, 4),
        (1 << 20, 64, 64, 10),
        (1 << 16, 64, 64, 10),
        (1 << 16, 64, 256, 10),
    )
    sweep_precisions: tuple[str, ...] = ("float32", "tf32", "bfloat16", "float64")
    fit_layers: tuple[int, int, int] = MNIST[1:]
    fit_rows: int = 60_000
    fit_epochs: int = 30
    compile_seconds: float = 60.0  # of all torch.compile; afterwards it is left out
    seed: int = field(default_factory=lambda: secrets.randbelow(2**31))

    @property
    def device(self) -> str:
        return self.clock.device

    @classmethod
    def quick(cls, device: str) -> Plan:
        return cls(
            Clock(device, turns=1 if device == "cpu" else 3, turn_seconds=1e-3),
            grid=((1, 8, 64, 2), (16, 20, 30, 10)),
            batches=(1, 4),
            rows=1 << 8,
            sweep=((16,), (64,), (64,), (10, 140)),
            narrow=((256, 8, 8, 2),),
            sweep_precisions=("float32",),
            fit_layers=(784, 4, 10),
            fit_rows=130,
            fit_epochs=2,
            compile_seconds=0,
        )


@dataclass
class Result:
    """A case's rows and verdicts, as plain data."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def judge(self, target: str, value: float | None, note: str = "") -> None:
        self.verdicts.append(Verdict(target, value, note))

    def document(self) -> dict[str, Any]:
        verdicts = [{**vars(v), **TARGETS[v.target].words(), "reached": v.reached} for v in self.verdicts]
        return {**vars(self), "verdicts": verdicts}
