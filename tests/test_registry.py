"""The registry's tables against the C++ lists, and every row against the functions it needs elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import Shape, Training
from native_runs import make_engine, run_steps
from torch import nn

import twolayer.nn
from twolayer import _core, registry
from twolayer.reference import numpy as reference
from twolayer.reference import torch as torch_reference

NATIVE = {"ACTIVATIONS": _core.activations, "LOSSES": _core.losses, "OPTIMIZERS": _core.optimizers}
TABLES = {name: getattr(registry, name) for name in NATIVE}
every_table = pytest.mark.parametrize("table", TABLES)
every_activation = pytest.mark.parametrize("row", registry.ACTIVATIONS.values(), ids=lambda row: row.name)


@every_table
def test_native_list_has_the_same_names_in_the_same_order(table):
    assert NATIVE[table]() == list(TABLES[table])


@every_table
def test_ids_are_positions_and_keys_are_names(table):
    assert [(row.id, row.name) for row in TABLES[table].values()] == list(enumerate(TABLES[table]))


@every_table
def test_numpy_reference_has_the_same_names(table):
    assert list(getattr(reference, table)) == list(TABLES[table])


def test_torch_reference_has_the_same_names():
    assert list(torch_reference.ACTIVATIONS) == list(registry.ACTIVATIONS)
    assert list(torch_reference.ACTIVATION_BACKWARD) == list(registry.ACTIVATIONS)
    assert list(torch_reference.LOSSES) == list(registry.LOSSES)


@every_activation
def test_native_saves_the_array_that_the_row_names(row):
    # z1 = 0.5 is kept or not; of the activations only identity has there its input for output.
    one = torch.ones(1, 1, dtype=torch.float64)
    y, saved = torch.empty_like(one), torch.empty_like(one)
    _core.forward(one, one * 0.5, None, one, None, saved, y, row.id, 1)
    output = row.value(np.array(0.5)).item()
    assert (output == 0.5) == (row.name in ("identity", "relu", "leaky_relu"))
    assert saved.item() == pytest.approx(output if row.saved == "output" else 0.5, rel=1e-14)
    assert y.item() == pytest.approx(output, rel=1e-14)


@every_activation
def test_the_module_computes_the_value(row):
    module = twolayer.nn.make_activation(row.name)
    assert type(module).__name__ == row.module
    z = torch.linspace(-3, 3, 61, dtype=torch.float64)
    np.testing.assert_allclose(module(z), row.value(z.numpy()), rtol=1e-12, atol=1e-15)
    assert twolayer.nn.activation_name(module) == row.name


@pytest.mark.parametrize("row", registry.LOSSES.values(), ids=lambda row: row.name)
def test_native_losses_take_the_targets_that_the_row_names(row):
    training = Training(row.name, "identity", torch.float64, Shape(3, 1, 1, 2), without=("b1", "b2"))
    engine = make_engine(training)
    engine.load((np.ones((1, 1)), None, np.array([[1.0], [2.0]]), None))
    x, z, loss = np.ones((3, 1)), np.tile([1.0, 2.0], (3, 1)), np.empty(1)
    values, classes = np.full((3, 2), 0.25), np.array([0, 1, 1])
    run_steps(engine, x, values, loss, 3, lr=0.0)
    assert loss[0] == pytest.approx(row.value(z, values), rel=1e-14)
    if row.targets == "classes_or_distributions":
        run_steps(engine, x, classes, loss, 3, lr=0.0)
        assert loss[0] == pytest.approx(row.value(z, classes), rel=1e-14)
    else:
        with pytest.raises(TypeError, match="y must hold values for this loss; got int64 classes"):
            run_steps(engine, x, classes, loss, 3, lr=0.0)


def test_lookup_names_the_argument_and_the_nearest():
    assert registry.lookup(registry.ACTIVATIONS, "relu", "activation") is registry.ACTIVATIONS["relu"]
    with pytest.raises(
        ValueError, match=r"^activation must be one of identity, .*; got 'reul' \(did you mean 'relu'\?\)$"
    ):
        registry.lookup(registry.ACTIVATIONS, "reul", "activation")
    with pytest.raises(ValueError, match=r"^loss must be one of cross_entropy, .*; got 'zzz'$"):
        registry.lookup(registry.LOSSES, "zzz", "loss")
    with pytest.raises(TypeError, match=r"^activation must be a string, one of identity, .*; got ReLU$"):
        registry.lookup(registry.ACTIVATIONS, nn.ReLU(), "activation")
