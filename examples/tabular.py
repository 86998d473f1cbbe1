"""Regression on tables with early stopping: scikit-learn's diabetes, and 20,000 rows of Friedman's function."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from plain import report, seconds_of, train, warm_up
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.model_selection import train_test_split
from torch.nn.functional import mse_loss

import twolayer

HIDDEN, PATIENCE = 64, 8
Pair = tuple[torch.Tensor, torch.Tensor]


def splits(x: np.ndarray, y: np.ndarray) -> list[Pair]:
    """Standardised tensors to train on, to stop by, and to test with."""
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    rest_x, test_x, rest_y, test_y = train_test_split(x, y[:, None], test_size=0.2, random_state=0)
    train_x, stop_x, train_y, stop_y = train_test_split(rest_x, rest_y, test_size=0.2, random_state=0)
    pairs = (train_x, train_y), (stop_x, stop_y), (test_x, test_y)
    return [(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)) for a, b in pairs]


def compare(name: str, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
    (train_x, train_y), held_out, (test_x, test_y) = splits(x, y)
    torch.manual_seed(0)
    net = twolayer.TwoLayerNet(x.shape[1], HIDDEN, 1, activation="silu")
    plain = torch.nn.Sequential(torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.SiLU(), torch.nn.Linear(HIDDEN, 1))
    plain.load_state_dict(net.state_dict())

    def r2(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return (1 - mse_loss(model(test_x), test_y) / test_y.var(correction=0)).item()

    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    took, slow = seconds_of(
        lambda: train(
            plain, train_x, train_y, mse_loss, optimizer, epochs=epochs, validation=held_out, patience=PATIENCE
        ),
        threads=1,
    )
    history, fast = seconds_of(
        lambda: twolayer.fit(
            net,
            train_x,
            train_y,
            loss="mse",
            optimizer="adam",
            lr=1e-3,
            epochs=epochs,
            validation=held_out,
            early_stopping=twolayer.EarlyStopping(PATIENCE),
        )
    )
    found = r2(plain), r2(net)
    print(f"{name}: {len(train_x):,} rows, {x.shape[1]}-{HIDDEN}-1, at most {epochs} epochs")
    report(
        [
            ("plain PyTorch", f"R² {found[0]:.3f} on the test rows, {took} epochs", slow),
            ("twolayer.fit", f"R² {found[1]:.3f} on the test rows, {len(history.loss)} epochs", fast),
        ]
    )
    assert abs(found[0] - found[1]) <= 0.03, "both must learn the same"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    quick = parser.parse_args(arguments).quick
    warm_up()
    compare("diabetes", *load_diabetes(return_X_y=True), epochs=20 if quick else 200)
    compare(
        "Friedman", *make_friedman1(2_000 if quick else 20_000, noise=1.0, random_state=0), epochs=5 if quick else 60
    )


if __name__ == "__main__":
    main()
