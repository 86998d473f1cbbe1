"""Measured results in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def metrics_line(metrics: Mapping[str, Any]) -> str:
    """Accuracy, or R², RMSE and mean absolute error, in one line."""
    if "accuracy" in metrics:
        return f"accuracy {metrics['accuracy']:.2%}"
    r2 = "–" if metrics["r2"] is None else f"{metrics['r2']:.4f}"
    return f"R² {r2}, RMSE {metrics['rmse']:.4g}, mean absolute error {metrics['mae']:.4g}"
