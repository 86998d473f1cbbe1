"""A probe on frozen embeddings: how well does a small net read digits off features that are not trained?

The embeddings are those of a fixed random convolution, 1,797 images of scikit-learn's digits in 576 numbers each.
"""

from __future__ import annotations

import argparse

import torch
from plain import report, seconds_of, train, warm_up
from sklearn.datasets import load_digits
from torch.nn.functional import avg_pool2d, conv2d, cross_entropy

import twolayer

HIDDEN, TRAINED = 64, 1297  # the other 500 images are for the test


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """x (1797, 576), with mean 0 and deviation 1 in each column, and y (1797,)."""
    digits = load_digits()
    draw = torch.Generator().manual_seed(0)
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    maps = conv2d(images, torch.randn(64, 1, 3, 3, generator=draw), padding=1).relu()
    x = avg_pool2d(maps, 4, stride=2).flatten(1)
    return (x - x.mean(0)) / (x.std(0) + 1e-3), torch.tensor(digits.target)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    epochs = 5 if parser.parse_args(arguments).quick else 40
    warm_up()
    x, y = embeddings()
    torch.manual_seed(0)
    net = twolayer.TwoLayerNet(x.shape[1], HIDDEN, 10, activation="relu")
    plain = torch.nn.Sequential(torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10))
    plain.load_state_dict(net.state_dict())

    def accuracy(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return (model(x[TRAINED:]).argmax(1) == y[TRAINED:]).float().mean().item()

    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    _, slow = seconds_of(lambda: train(plain, x[:TRAINED], y[:TRAINED], cross_entropy, optimizer, epochs=epochs), 1)
    _, fast = seconds_of(lambda: twolayer.fit(net, x[:TRAINED], y[:TRAINED], optimizer="adam", lr=1e-3, epochs=epochs))

    print(f"A probe 576-{HIDDEN}-10 on frozen embeddings of {TRAINED} digits, {epochs} epochs of Adam")
    found = accuracy(plain), accuracy(net)
    report(
        [
            ("plain PyTorch", f"test accuracy {found[0]:.1%}", slow),
            ("twolayer.fit", f"test accuracy {found[1]:.1%}", fast),
        ]
    )
    assert abs(found[0] - found[1]) <= 0.01, "both must learn the same"


if __name__ == "__main__":
    main()
