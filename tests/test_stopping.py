"""Validation in the engine, and early stopping: against torch's evaluation and a rule written down anew."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import (
    ROWS,
    assert_changed,
    assert_same_bits,
    make_data,
    make_net,
    one_torch_thread,  # noqa: F401
)

from twolayer import EarlyStopping, NumpyNet, Trainer, TrainingInterrupted, fit
from twolayer.reference.numpy import permutation

X, HELD_OUT_X = make_data()[0], make_data(rows=23, seed=2)[0]
TEACHER = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
Y, HELD_OUT_Y = (X @ TEACHER).argmax(dim=1), (HELD_OUT_X @ TEACHER).argmax(dim=1)
UNSTEADY = {"optimizer": "adam", "lr": 0.03, "batch_size": 8, "seed": 2}  # the validation loss goes up and down


@functools.cache
def run_to_the_end(epochs):
    """Train without stopping; return the history, and the net after each epoch."""
    net, nets = make_net(), []
    history = fit(
        net,
        X,
        Y,
        epochs=epochs,
        validation=(HELD_OUT_X, HELD_OUT_Y),
        callback=lambda epoch, history: nets.append(copy.deepcopy(net)),
        **UNSTEADY,
    )
    return history, nets


# Validation


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "bce_with_logits"])
def test_validation_is_torchs_evaluation_after_each_epoch(loss):
    x, y = make_data(loss)
    held_out_x, held_out_y = make_data(loss, rows=23, seed=2)
    function = {
        "cross_entropy": nn.functional.cross_entropy,
        "mse": nn.functional.mse_loss,
        "bce_with_logits": nn.functional.binary_cross_entropy_with_logits,
    }[loss]
    losses, accuracies = [], []

    def evaluate(epoch, history):
        z = net(held_out_x)
        losses.append(function(z, held_out_y).item())
        accuracies.append((z.argmax(1) == held_out_y).double().mean().item() if loss == "cross_entropy" else None)
        assert (len(history.val_loss), history.val_loss[-1]) == (epoch + 1, pytest.approx(losses[-1], rel=1e-13))

    net = make_net()
    history = fit(
        net,
        x,
        y,
        loss=loss,
        batch_size=8,
        epochs=3,
        lr=0.1,
        dropout=0.5,
        l2=0.1,
        validation=(held_out_x, held_out_y),
        callback=evaluate,
    )
    assert history.val_loss == pytest.approx(losses, rel=1e-13)
    assert history.val_accuracy == (accuracies if loss == "cross_entropy" else [])
    assert (history.stopped_early, history.best_epoch) == (False, None)


def test_validation_changes_nothing_in_training():
    net, expected = make_net(), make_net()
    history = fit(net, X, Y, epochs=3, batch_size=8, momentum=0.9, dropout=0.3, validation=(HELD_OUT_X, HELD_OUT_Y))
    without = fit(expected, X, Y, epochs=3, batch_size=8, momentum=0.9, dropout=0.3)
    assert_same_bits(net, expected)
    assert history.loss == without.loss


def test_validation_may_carry_sample_weights():
    weight = torch.rand(23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = make_net()
    history = fit(net, X, Y, validation=(HELD_OUT_X, HELD_OUT_Y, weight))
    rows = nn.functional.cross_entropy(net(HELD_OUT_X), HELD_OUT_Y, reduction="none")
    assert history.val_loss == [pytest.approx(((weight * rows).sum() / weight.sum()).item(), rel=1e-13)]


def test_validation_leaves_rows_of_the_ignored_class_out():
    labels = HELD_OUT_Y.clone()
    labels[::3] = 1  # an ignored class that the net can name too
    net = make_net()
    history = fit(net, X, Y, ignore_index=1, validation=(HELD_OUT_X, labels))
    z, kept = net(HELD_OUT_X), labels != 1
    assert history.val_loss == [pytest.approx(nn.functional.cross_entropy(z[kept], labels[kept]).item(), rel=1e-13)]
    assert history.val_accuracy == [pytest.approx((z[kept].argmax(1) == labels[kept]).double().mean().item())]
    nothing = Trainer(net, ignore_index=1).evaluate(HELD_OUT_X, torch.full_like(labels, 1))
    assert math.isnan(nothing["loss"])
    assert math.isnan(nothing["accuracy"])


@pytest.mark.parametrize("fraction", [0.2, 0.5, np.float32(0.2), 1 / ROWS])
def test_a_fraction_is_the_documented_split_and_never_trained_on(fraction):
    mixed = permutation(ROWS, 3, 2**64 - 1)
    count = round(float(fraction) * ROWS)
    held_out, trained = np.sort(mixed[ROWS - count :]), np.sort(mixed[: ROWS - count])
    options = {"batch_size": 8, "epochs": 3, "seed": 3, "momentum": 0.9}
    net, expected = make_net(), make_net()
    history = fit(net, X, Y, validation=fraction, **options)
    apart = fit(expected, X[trained], Y[trained], validation=(X[held_out], Y[held_out]), **options)
    assert_same_bits(net, expected)
    assert (history.loss, history.val_loss) == (apart.loss, apart.val_loss)
    assert history.val_accuracy == apart.val_accuracy
    assert history.steps == 3 * -(-(ROWS - count) // 8)

    poisoned = X.clone()
    poisoned[held_out] = math.nan
    again = make_net()
    assert math.isnan(fit(again, poisoned, Y, validation=fraction, **options).val_loss[-1])
    assert_same_bits(again, net)


def test_a_fraction_takes_the_sample_weights_along():
    weight = np.arange(1.0, ROWS + 1)
    mixed = permutation(ROWS, 0, 2**64 - 1)
    held_out, trained = np.sort(mixed[30:]), np.sort(mixed[:30])
    net, expected = make_net(), make_net()
    history = fit(net, X, Y, sample_weight=weight, validation=7 / ROWS, batch_size=8)
    apart = fit(
        expected,
        X[trained],
        Y[trained],
        sample_weight=weight[trained],
        validation=(X[held_out], Y[held_out], weight[held_out]),
        batch_size=8,
    )
    assert_same_bits(net, expected)
    assert history.val_loss == apart.val_loss


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (0.0, ValueError, "validation must leave rows on both sides; 0.0 of 37 rows does not"),
        (1, ValueError, "validation must leave rows on both sides; 1.0 of 37 rows does not"),
        (0.001, ValueError, "validation must leave rows on both sides; 0.001 of 37 rows does not"),
        (1.5, ValueError, "validation must be finite and at least 0 and at most 1; got 1.5"),
        (math.nan, ValueError, "validation must be finite .*; got nan"),
        (True, TypeError, r"validation must be \(x, y\) or a fraction of the rows; got bool"),
        ("0.2", TypeError, r"validation must be \(x, y\) or a fraction of the rows; got"),
        (X, TypeError, r"validation must be \(x, y\) or a fraction of the rows; got"),
        (X.numpy(), TypeError, r"validation must be \(x, y\) or a fraction of the rows; got"),
        ((X,), TypeError, r"validation must be \(x, y\) or a fraction of the rows; got"),
        ((X[:, :3], Y), ValueError, r"validation: x must have shape \(rows, 9\), as the net has; got \(37, 3\)"),
        ((X, Y[:-1]), ValueError, r"validation: y must have shape \(37,\), one class for each row of x"),
        ((X, Y + 1), ValueError, r"validation: y must hold classes in \[0, 5\); row \d+ holds 5"),
        ((X[:0], Y[:0]), ValueError, "validation: x must have at least one row; got none"),
    ],
)
def test_wrong_validation_is_refused_before_anything_is_changed(validation, error, message):
    net = make_net()
    with pytest.raises(error, match=message):
        fit(net, X, Y, validation=validation)
    assert_same_bits(net, make_net())


def test_a_fraction_of_an_iterable_is_refused():
    with pytest.raises(ValueError, match=r"validation must be \(x, y\) with an iterable of batches; got 0.2"):
        fit(make_net(), [(X, Y)], validation=0.2)


# Early stopping


def expected_stop(values, patience, min_delta):
    """(epochs run, best epoch), by the rule as documented; ``values`` are better when smaller."""
    best, best_epoch = math.inf, None
    for epoch, value in enumerate(values):
        if value < best - min_delta:
            best, best_epoch = value, epoch
        since_best = epoch + 1 if best_epoch is None else epoch - best_epoch
        if since_best == patience:
            return epoch + 1, best_epoch
    return len(values), best_epoch


EPOCHS = 25


@pytest.mark.parametrize("restore_best", [True, False])
@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy", "loss"])
@pytest.mark.parametrize("min_delta", [0.0, 0.05, 1e9])
@pytest.mark.parametrize("patience", [1, 2, 3, 5])
def test_stops_as_documented(patience, min_delta, monitor, restore_best):
    whole, nets = run_to_the_end(EPOCHS)
    sign = -1 if monitor == "val_accuracy" else 1
    epochs, best_epoch = expected_stop([sign * value for value in getattr(whole, monitor)], patience, min_delta)
    net = make_net()
    history = fit(
        net,
        X,
        Y,
        epochs=EPOCHS,
        validation=(HELD_OUT_X, HELD_OUT_Y),
        early_stopping=EarlyStopping(patience, min_delta, monitor, restore_best),
        **UNSTEADY,
    )
    assert len(history.loss) == epochs
    assert (history.best_epoch, history.stopped_early) == (best_epoch, epochs < EPOCHS)
    assert history.val_loss == whole.val_loss[:epochs]
    assert history.val_accuracy == whole.val_accuracy[:epochs]
    assert history.steps == epochs * 5
    assert_same_bits(net, nets[best_epoch if restore_best else epochs - 1])
    if epochs - 1 != best_epoch:
        assert_changed(nets[best_epoch], nets[epochs - 1])


def test_the_unsteady_run_is_a_test_of_patience():
    whole, _ = run_to_the_end(EPOCHS)
    stops = {patience: expected_stop(whole.val_loss, patience, 0.0) for patience in (1, 2, 3, 5)}
    assert len(set(stops.values())) >= 3
    assert stops[5] != expected_stop(whole.val_loss, 5, 0.05)


def test_the_best_weights_are_restored_also_when_epochs_run_out():
    whole, nets = run_to_the_end(10)
    best = int(np.argmin(whole.val_loss))
    assert best < 9
    net = make_net()
    history = fit(
        net, X, Y, epochs=10, validation=(HELD_OUT_X, HELD_OUT_Y), early_stopping=EarlyStopping(100), **UNSTEADY
    )
    assert (history.best_epoch, history.stopped_early, len(history.loss)) == (best, False, 10)
    assert_same_bits(net, nets[best])


def test_a_callback_that_ends_training_has_the_best_weights_restored():
    whole, nets = run_to_the_end(10)
    best = int(np.argmin(whole.val_loss))
    net = make_net()
    history = fit(
        net,
        X,
        Y,
        epochs=30,
        validation=(HELD_OUT_X, HELD_OUT_Y),
        early_stopping=EarlyStopping(100),
        callback=lambda epoch, history: epoch == 9,
        **UNSTEADY,
    )
    assert (history.best_epoch, history.stopped_early, len(history.loss)) == (best, True, 10)
    assert_same_bits(net, nets[best])


def test_a_figure_that_is_never_a_number_leaves_the_net_as_it_ended():
    net, expected = make_net(), make_net()
    poisoned = HELD_OUT_X.clone().fill_(math.nan)
    history = fit(net, X, Y, epochs=9, validation=(poisoned, HELD_OUT_Y), early_stopping=EarlyStopping(patience=3))
    fit(expected, X, Y, epochs=3)
    assert (len(history.loss), history.stopped_early, history.best_epoch) == (3, True, None)
    assert_same_bits(net, expected)


def test_frozen_parameters_stay_out_of_the_best_weights():
    net = make_net()
    net[0].weight.requires_grad_(False)
    held = net[0].weight.detach().clone()
    history = fit(net, X, Y, epochs=6, validation=(HELD_OUT_X, HELD_OUT_Y), early_stopping=EarlyStopping(2), **UNSTEADY)
    assert history.best_epoch is not None
    assert net[0].weight.equal(held)


def test_a_restored_numpy_net_is_the_torch_one():
    net, torch_net = NumpyNet(9, 20, 5, "tanh", dtype=np.float64), make_net()
    for name, parameter in zip(("w1", "b1", "w2", "b2"), torch_net.parameters(), strict=True):
        setattr(net, name, parameter.detach().numpy().copy())
    options = {"epochs": 9, "validation": (HELD_OUT_X, HELD_OUT_Y), "early_stopping": EarlyStopping(2), **UNSTEADY}
    assert fit(net, X, Y, **options).best_epoch == fit(torch_net, X, Y, **options).best_epoch
    for mine, theirs in zip(net.parameters().values(), torch_net.parameters(), strict=True):
        np.testing.assert_array_equal(mine, theirs.detach().numpy())


def test_restoring_is_a_change_that_autograd_sees():
    net = make_net()

    def callback(epoch, history):
        if epoch == 9:
            graphs.append(net.to_sequential()(X).square().sum())
        return epoch == 9

    graphs = []
    options = UNSTEADY | {"validation": (HELD_OUT_X, HELD_OUT_Y), "early_stopping": EarlyStopping(100)}
    history = fit(net, X, Y, epochs=12, callback=callback, **options)
    assert history.best_epoch != 9
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        graphs[0].backward()


def test_ctrl_c_leaves_the_last_step_and_a_usable_history():
    def callback(epoch, history):
        if epoch == 9:
            raise KeyboardInterrupt

    whole, nets = run_to_the_end(10)
    net = make_net()
    with pytest.raises(TrainingInterrupted) as caught:
        fit(
            net,
            X,
            Y,
            epochs=30,
            validation=(HELD_OUT_X, HELD_OUT_Y),
            early_stopping=EarlyStopping(100),
            callback=callback,
            **UNSTEADY,
        )
    history = caught.value.history
    assert (history.val_loss, history.steps) == (whole.val_loss, 50)
    assert history.best_epoch == int(np.argmin(whole.val_loss))
    assert_same_bits(net, nets[-1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EarlyStopping(patience=0), ValueError, "patience must be an integer of at least 1; got 0"),
        (lambda: EarlyStopping(patience=2.0), ValueError, "patience must be an integer of at least 1; got 2.0"),
        (lambda: EarlyStopping(patience=True), ValueError, "patience must be an integer of at least 1; got True"),
        (lambda: EarlyStopping(min_delta=-1), ValueError, "min_delta must be finite and at least 0; got -1"),
        (lambda: EarlyStopping(min_delta=math.nan), ValueError, "min_delta must be finite and at least 0; got nan"),
        (lambda: EarlyStopping(monitor="val_los"), ValueError, "monitor must be one of val_loss, .*; got 'val_los'"),
        (
            lambda: fit(make_net(), X, Y, early_stopping=3),
            TypeError,
            "early_stopping must be an EarlyStopping; got int",
        ),
        (
            lambda: fit(make_net(), X, Y, early_stopping=EarlyStopping()),
            ValueError,
            "early_stopping monitors val_loss, which needs validation; got validation=None",
        ),
        (
            lambda: fit(
                make_net(),
                X,
                X[:, :5],
                loss="mse",
                validation=0.5,
                early_stopping=EarlyStopping(monitor="val_accuracy"),
            ),
            ValueError,
            "early_stopping monitors val_accuracy, which needs classes; y holds values",
        ),
    ],
)
def test_wrong_early_stopping_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_training_loss_needs_no_validation():
    history = fit(make_net(), X, Y, epochs=EPOCHS, early_stopping=EarlyStopping(2, 1e9, monitor="loss"))
    assert (len(history.loss), history.best_epoch) == (3, 0)
