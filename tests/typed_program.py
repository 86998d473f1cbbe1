"""A program as a user writes it under ``mypy --strict``: tests/test_install.py checks and runs it on a wheel."""
# What our own configuration leaves out of strict:
# mypy: disallow-subclassing-any, disallow-untyped-calls, disallow-untyped-decorators, warn-return-any

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import twolayer
from twolayer.predictor import Predictor
from twolayer.training.schedules import CosineDecay, WarmUp

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value: object, kind: object) -> None:
        pass


torch.manual_seed(0)
x, y = torch.randn(120, 8), torch.randint(0, 3, (120,))


def keep_on(epoch: int, history: twolayer.History) -> bool:
    return len(history.loss) != epoch + 1


# Nets.
net = twolayer.TwoLayerNet(8, 16, 3, activation="relu", bias=True, dtype=torch.float32)
assert_type(net, twolayer.TwoLayerNet)
assert_type(net.hidden_features, int)
assert_type(twolayer.TwoLayerNet.from_sequential(net.to_sequential()), twolayer.TwoLayerNet)
assert_type(twolayer.fuse(net), torch.nn.Module)
layers = [torch.zeros(16, 8), torch.zeros(16), torch.zeros(3, 16)]
assert_type(twolayer.two_layer(x, layers[0], layers[1], layers[2], None, activation="gelu"), torch.Tensor)

# Training.
history = twolayer.fit(
    net,
    x,
    y,
    optimizer="adam",
    lr=1e-2,
    epochs=4,
    validation=0.25,
    early_stopping=twolayer.EarlyStopping(patience=2, monitor="val_loss", restore_best=True),
    lr_schedule=WarmUp(steps=2, then=CosineDecay(epochs=4, per_step=True)),
    callback=keep_on,
)
assert_type(history, twolayer.History)
assert_type(history.val_accuracy, list[float])
assert_type(history.best_epoch, int | None)

trainer = twolayer.Trainer(net, optimizer="sgd", momentum=0.9)
assert_type(trainer.step(x, y), float)
assert_type(trainer.evaluate(x, y), dict[str, float])
assert_type(trainer.state_dict(), dict[str, Any])
try:
    trainer.epoch(x * float("nan"), y)
except twolayer.NonFiniteLossError as error:
    assert_type(error.step, int)

# Without torch.
small = twolayer.NumpyNet(8, 16, 3, activation="tanh")
twolayer.fit(small, x.numpy(), y.numpy())
predictor = small.predictor(threads=1)
assert_type(predictor, Predictor)
scores = predictor(np.zeros(8, np.float32))
assert scores.shape == (3,)

assert_type(twolayer.info(), dict[str, Any])
assert_type(twolayer.__version__, str)
