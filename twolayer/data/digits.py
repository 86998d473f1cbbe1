"""scikit-learn's 8×8 digits in MNIST's clothes: real handwriting that needs no file and no network."""

from __future__ import annotations

import numpy as np

from .dataset import CLASSES, MNIST, PARTS, SIDE, checked_mnist

TEST_FRACTION = 0.2


def digits_as_mnist(seed: int = 0) -> MNIST:
    """Return scikit-learn's 1,797 digits scaled bilinearly from 8×8 to 28×28, as uint8 0 to 255.

    A fifth of every class is held out as the test set; the split and the order are drawn from ``seed``.
    ``ImportError`` when scikit-learn is not installed. Source: ``sklearn.datasets.load_digits`` (UCI, Alpaydin and
    Kaynak 1998).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f"digits_as_mnist needs scikit-learn: pip install 'twolayer[demo]' ({error})") from error
    digits = load_digits()
    images, labels = enlarged(digits.images), digits.target
    train, test = _stratified_split(labels, np.random.default_rng(seed))
    parts = (images[train], labels[train], images[test], labels[test])
    return checked_mnist(parts, PARTS, "scikit-learn's 8×8 digits, scaled to 28×28")


def enlarged(images: np.ndarray) -> np.ndarray:
    """(n, 8, 8) with values 0 to 16 → (n, 28, 28) uint8."""
    weights = _bilinear_weights(images.shape[1], SIDE)
    return np.rint(weights @ images @ weights.T * (255 / 16)).astype(np.uint8)


def _bilinear_weights(small: int, large: int) -> np.ndarray:
    """(large, small): row i interpolates at the centre of large pixel i; pixels have area, so edges do not align."""
    centres = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    return np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(small)))


def _stratified_split(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the test set, shuffled, the same fraction of every class in each."""
    is_test = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(len(members) * TEST_FRACTION)]] = True
    return rng.permutation(np.flatnonzero(~is_test)), rng.permutation(np.flatnonzero(is_test))
