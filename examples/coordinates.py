"""A photograph as a function of its coordinates, as in NeRF: 273,280 pixels, each a row, into one small net.

With ``sine`` the net sees (x, y) themselves, its first weights drawn large enough for fine detail (SIREN); with
``relu`` sines and cosines of them at ten frequencies.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from plain import report, seconds_of, train, warm_up
from sklearn.datasets import load_sample_image
from torch.nn.functional import mse_loss

import twolayer
from twolayer.nn import make_activation

HIDDEN, BATCH, LR = 256, 4096, 3e-3


def picture(step: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Coordinates (pixels, 2) in [−1, 1], colours (pixels, 3) in [0, 1], and the size; every ``step``-th pixel."""
    image = load_sample_image("china.jpg")[::step, ::step] / np.float32(255)
    height, width = image.shape[:2]
    grid = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    x = torch.tensor(np.stack(grid, -1).reshape(-1, 2), dtype=torch.float32)
    return x, torch.from_numpy(image.reshape(-1, 3)), (height, width)


def encoded(x: torch.Tensor) -> torch.Tensor:
    """(pixels, 40): sine and cosine of both coordinates at ten frequencies."""
    angles = (x.unsqueeze(-1) * math.pi * 2.0 ** torch.arange(10) / 4).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--save", type=Path, metavar="PNG", help="write the picture that the relu net draws")
    options = parser.parse_args(arguments)
    warm_up()
    coordinates, colours, size = picture(8 if options.quick else 1)
    epochs = 2 if options.quick else 10
    print(f"A photograph of {size[0]} × {size[1]} pixels from its coordinates, {epochs} epochs, batches of {BATCH:,}")
    for activation, x in (("sine", coordinates), ("relu", encoded(coordinates))):
        torch.manual_seed(0)
        net = twolayer.TwoLayerNet(x.shape[1], HIDDEN, 3, activation=activation)
        if activation == "sine":
            with torch.no_grad():
                net[0].weight *= 30
        plain = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], HIDDEN), make_activation(activation), torch.nn.Linear(HIDDEN, 3)
        )
        plain.load_state_dict(net.state_dict())
        optimizer = torch.optim.Adam(plain.parameters(), lr=LR)
        _, slow = seconds_of(
            lambda: train(plain, x, colours, mse_loss, optimizer, epochs=epochs, batch_size=BATCH)  # noqa: B023
        )
        _, fast = seconds_of(
            lambda: twolayer.fit(net, x, colours, loss="mse", optimizer="adam", lr=LR, epochs=epochs, batch_size=BATCH)  # noqa: B023
        )
        with torch.no_grad():
            drawn = net(x)
            found = [-10 * mse_loss(y, colours).log10().item() for y in (plain(x), drawn)]
        print(f"{activation}, {x.shape[1]}-{HIDDEN}-3")
        report([("plain PyTorch", f"{found[0]:.2f} dB", slow), ("twolayer.fit", f"{found[1]:.2f} dB", fast)])
        assert abs(found[0] - found[1]) < 0.5, "both must learn the same"
    if options.save:
        from matplotlib import image

        image.imsave(options.save, drawn.clamp(0, 1).reshape(*size, 3).numpy())


if __name__ == "__main__":
    main()
