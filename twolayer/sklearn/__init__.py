"""scikit-learn's estimators over the native engine, without torch: docs/sklearn.md says how they are used."""

from __future__ import annotations

try:
    from .classifier import TwoLayerClassifier
    from .regressor import TwoLayerRegressor
except ImportError as error:  # scikit-learn is not there, or has no validate_data yet
    raise ImportError(
        f"twolayer.sklearn needs scikit-learn ≥ 1.6: pip install 'twolayer[sklearn]' ({error})"
    ) from error

__all__ = ["TwoLayerClassifier", "TwoLayerRegressor"]
