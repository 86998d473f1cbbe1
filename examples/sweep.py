"""A sweep of learning rates: twelve nets on the same digits, at once by ``fit_many``."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from plain import report, seconds_of, train, warm_up
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import twolayer

HIDDEN, TRAINED = 64, 1297
RATES = np.logspace(-3, 1, 12)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    epochs = 3 if parser.parse_args(arguments).quick else 30
    warm_up()
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    held_out = x[TRAINED:], y[TRAINED:]
    torch.manual_seed(0)
    start = twolayer.TwoLayerNet(64, HIDDEN, 10, activation="relu").state_dict()
    nets = [twolayer.TwoLayerNet(64, HIDDEN, 10, activation="relu") for _ in RATES]
    for net in nets:
        net.load_state_dict(start)

    def one_by_one() -> list[float]:
        accuracies = []
        for lr in RATES:
            net = torch.nn.Sequential(torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10))
            net.load_state_dict(start)
            optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
            train(net, x[:TRAINED], y[:TRAINED], cross_entropy, optimizer, epochs=epochs)
            with torch.no_grad():
                accuracies.append((net(held_out[0]).argmax(1) == held_out[1]).float().mean().item())
        return accuracies

    def at_once() -> list[float]:
        histories = twolayer.fit_many(
            nets, x[:TRAINED], y[:TRAINED], lr=RATES, momentum=0.9, epochs=epochs, validation=held_out
        )
        return [history.val_accuracy[-1] for history in histories]

    theirs, slow = seconds_of(one_by_one, threads=1)
    ours, fast = seconds_of(at_once)
    print(f"Twelve learning rates, 64-{HIDDEN}-10, {epochs} epochs each of SGD with momentum on {TRAINED} digits")
    for lr, accuracy in zip(RATES, ours, strict=True):
        print(f"  lr {lr:7.4f}  {accuracy:6.1%}  {'█' * round(40 * accuracy)}")
    report(
        [
            ("plain PyTorch", f"best {max(theirs):.1%} at lr {RATES[np.argmax(theirs)]:.2g}", slow),
            ("twolayer.fit_many", f"best {max(ours):.1%} at lr {RATES[np.argmax(ours)]:.2g}", fast),
        ]
    )
    assert abs(max(theirs) - max(ours)) <= 0.01, "both must learn the same"


if __name__ == "__main__":
    main()
