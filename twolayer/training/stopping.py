"""Early stopping: what ``fit(..., early_stopping=...)`` takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .results import History

MONITORS = ("val_loss", "val_accuracy", "loss")


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when ``monitor`` has not got better by more than ``min_delta`` for ``patience`` epochs.

    ``monitor`` is ``val_loss`` or ``loss`` (less is better) or ``val_accuracy`` (more is better). With ``restore_best``
    the net ends with the weights of its best epoch, else with those of its last.
    """

    patience: int = 5
    min_delta: float = 0.0
    monitor: Literal["val_loss", "val_accuracy", "loss"] = "val_loss"
    restore_best: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"patience must be an integer of at least 1; got {self.patience!r}")
        if not (isinstance(self.min_delta, (int, float)) and math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueError(f"min_delta must be finite and at least 0; got {self.min_delta!r}")
        if self.monitor not in MONITORS:
            raise ValueError(f"monitor must be one of {', '.join(MONITORS)}; got {self.monitor!r}")


class StoppingWatch:
    """Follows the monitored figure of a run; ``best`` holds whatever was given with the best epoch."""

    def __init__(self, rule: EarlyStopping) -> None:
        self.rule = rule
        self._best_value = math.inf
        self._since = 0
        self.best: Any = None

    def is_better(self, history: History) -> bool:
        """Whether the last epoch is the best so far, by more than ``min_delta``."""
        value = getattr(history, self.rule.monitor)[-1]
        value = -value if self.rule.monitor == "val_accuracy" else value
        better = bool(value < self._best_value - self.rule.min_delta)  # NaN never is
        self._since = 0 if better else self._since + 1
        if better:
            self._best_value = value
        return better

    @property
    def is_over(self) -> bool:
        return self._since >= self.rule.patience
