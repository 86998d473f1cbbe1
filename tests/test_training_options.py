"""What every option of ``fit`` and ``Trainer`` does, by autograd and torch.optim, and how wrong ones are refused."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import (
    ROWS,
    RULES,
    assert_changed,
    assert_near,
    assert_same_bits,
    make_data,
    make_net,
    one_torch_thread,  # noqa: F401
    torch_optimizer,
    train_with_torch,
)

from twolayer import EarlyStopping, NonFiniteLossError, Trainer, fit
from twolayer.reference.numpy import dropout_mask, permutation
from twolayer.training.options import check_options

X, Y = make_data()
SGD = {"optimizer": "sgd", "lr": 0.1}


def cross_entropy(z, rows):
    return nn.functional.cross_entropy(z, Y[rows])


def assert_fit_is_torch(options, loss_of=cross_entropy, *, y=Y, rule=SGD, before_update=None, bound=1e-12):
    """Train both ways; ``loss_of(net, z, rows)`` or ``(z, rows)``. Return the two nets and the history."""
    net, plain = make_net(), make_net().to_sequential()
    history = fit(net, X, y, batch_size=8, epochs=4, **rule, **options)
    takes_net = len(inspect.signature(loss_of).parameters) == 3
    losses = train_with_torch(
        plain,
        X,
        (lambda z, rows: loss_of(plain, z, rows)) if takes_net else loss_of,
        torch_optimizer(plain, rule),
        epochs=4,
        before_update=before_update and (lambda: before_update(plain)),
    )
    assert_near(net, plain, bound)
    np.testing.assert_allclose(history.loss, losses, rtol=bound)
    return net, history


def assert_has_an_effect(net, options, rule=SGD, y=Y):
    without = make_net()
    fit(without, X, y, batch_size=8, epochs=4, **rule, **options)
    assert_changed(net, without)


# Optimisers


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_optimizer_is_torchs(rule):
    assert_fit_is_torch({}, rule=rule, bound=1e-11)


@pytest.mark.parametrize("rule", ["momentum", "amsgrad", "adamw", "rmsprop centered", "adagrad"])
def test_in_float32_too(rule):
    x, y = make_data(dtype=torch.float32)
    net, plain = make_net(dtype=torch.float32), make_net(dtype=torch.float32).to_sequential()
    fit(net, x, y, batch_size=8, epochs=3, **RULES[rule])
    train_with_torch(
        plain, x, lambda z, rows: nn.functional.cross_entropy(z, y[rows]), torch_optimizer(plain, RULES[rule])
    )
    assert_near(net, plain, 3e-5 if rule != "momentum" else 2e-6)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name, rule in RULES.items()
        for option in rule
        if option not in ("optimizer", "lr") and (name, option) != ("adagrad", "eps")  # which there is the default
    ],
)
def test_every_option_of_an_optimizer_has_an_effect(name, option):
    net, without = make_net(), make_net()
    needs = {"momentum": ("nesterov", "dampening")}.get(option, ())
    rest = {key: value for key, value in RULES[name].items() if key != option and key not in needs}
    fit(net, X, Y, batch_size=8, epochs=20, **RULES[name])
    fit(without, X, Y, batch_size=8, epochs=20, **rest)
    assert_changed(net, without)


# Regularisation


@pytest.mark.parametrize("penalty", [{"l1": 0.01}, {"l2": 0.02}, {"l1": 0.01, "l2": 0.02}], ids=str)
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_penalties_are_of_both_weights_and_part_of_the_loss(penalty, rule):
    def loss_of(net, z, rows):
        weights = net[0].weight, net[2].weight
        l1, l2 = penalty.get("l1", 0), penalty.get("l2", 0)
        return cross_entropy(z, rows) + sum(l1 * w.abs().sum() + l2 / 2 * w.square().sum() for w in weights)

    net, _ = assert_fit_is_torch(penalty, loss_of, rule=RULES[rule], bound=1e-11)
    assert_has_an_effect(net, {}, RULES[rule])


@pytest.mark.parametrize("clip_norm", [0.05, 0.5, 1e6])
@pytest.mark.parametrize("clip_value", [None, 0.01])
def test_gradients_are_clipped_as_by_torch(clip_norm, clip_value):
    def clip(net):
        nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        if clip_value:
            nn.utils.clip_grad_value_(net.parameters(), clip_value)

    net, _ = assert_fit_is_torch({"clip_norm": clip_norm, "clip_value": clip_value}, before_update=clip)
    if clip_norm < 1 or clip_value:
        assert_has_an_effect(net, {})


def test_values_are_clipped_as_by_torch():
    net, _ = assert_fit_is_torch(
        {"clip_value": 0.01}, before_update=lambda net: nn.utils.clip_grad_value_(net.parameters(), 0.01)
    )
    assert_has_an_effect(net, {})


def test_penalties_are_clipped_with_the_gradient():
    def loss_of(net, z, rows):
        return cross_entropy(z, rows) + 0.05 * sum(w.square().sum() for w in (net[0].weight, net[2].weight))

    assert_fit_is_torch(
        {"l2": 0.1, "clip_norm": 0.1},
        loss_of,
        before_update=lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.1),
    )


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_is_the_documented_mask(dropout):
    net, expected = make_net(), make_net().to_sequential()
    history = fit(net, X, Y, batch_size=8, epochs=3, dropout=dropout, seed=6, lr=0.1)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    step, losses = 0, []
    for epoch in range(3):
        for rows in torch.from_numpy(permutation(ROWS, 6, epoch)).split(8):
            mask = torch.from_numpy(dropout_mask(6, step, len(rows), 20, dropout))
            loss = cross_entropy(expected[2](expected[:2](X[rows]) * mask), rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
    assert_near(net, expected)
    assert history.loss[-1] == pytest.approx(np.average(losses[-5:], weights=[8, 8, 8, 8, 5]), rel=1e-12)


def test_dropout_drops_its_share_and_only_in_training():
    torch_net = make_net()
    evaluated = Trainer(torch_net, dropout=0.9).evaluate(X, Y)
    assert evaluated["loss"] == pytest.approx(cross_entropy(torch_net(X), slice(None)).item(), rel=1e-13)
    mask = dropout_mask(0, 0, 500, 400, 0.3)
    assert set(np.unique(mask)) == {0.0, 1 / 0.7}
    assert abs((mask == 0).mean() - 0.3) < 5 * math.sqrt(0.21 / mask.size)


def test_seed_is_of_order_and_dropout():
    nets = {}
    for seed in (0, 1):
        for options in ({"dropout": 0.5, "shuffle": False}, {}):
            nets[seed, len(options)] = net = make_net()
            fit(net, X, Y, batch_size=8, seed=seed, **options)
    assert_changed(nets[0, 0], nets[1, 0])
    assert_changed(nets[0, 2], nets[1, 2])


# Losses


@pytest.mark.parametrize(
    ("loss", "options", "function"),
    [
        ("mse", {}, nn.functional.mse_loss),
        ("mse_sum", {}, lambda z, y: nn.functional.mse_loss(z, y, reduction="sum")),
        ("l1", {}, nn.functional.l1_loss),
        ("smooth_l1", {}, nn.functional.smooth_l1_loss),
        ("smooth_l1", {"loss_beta": 0.2}, lambda z, y: nn.functional.smooth_l1_loss(z, y, beta=0.2)),
        ("smooth_l1", {"loss_beta": 0.0}, lambda z, y: nn.functional.smooth_l1_loss(z, y, beta=0.0)),
        ("huber", {}, nn.functional.huber_loss),
        ("huber", {"loss_beta": 0.2}, lambda z, y: nn.functional.huber_loss(z, y, delta=0.2)),
        ("bce_with_logits", {}, nn.functional.binary_cross_entropy_with_logits),
    ],
)
def test_losses_of_values_are_torchs(loss, options, function):
    _, y = make_data(loss)
    rule = {"optimizer": "sgd", "lr": 0.01 if loss == "mse_sum" else 0.2}
    net, _ = assert_fit_is_torch({"loss": loss, **options}, lambda z, rows: function(z, y[rows]), y=y, rule=rule)
    if options:
        assert_has_an_effect(net, {"loss": loss}, rule, y=y)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits"])
def test_extreme_logits_stay_finite(loss):
    x, y = make_data(loss)
    net, plain = make_net(), make_net().to_sequential()
    with torch.no_grad():
        for n in (net, plain):
            n[2].weight.mul_(1e4)
    function = {
        "cross_entropy": nn.functional.cross_entropy,
        "bce_with_logits": nn.functional.binary_cross_entropy_with_logits,
    }[loss]
    history = fit(net, x, y, loss=loss, lr=1e-3, batch_size=8)
    losses = train_with_torch(
        plain, x, lambda z, rows: function(z, y[rows]), torch.optim.SGD(plain.parameters(), 1e-3), epochs=1
    )
    assert losses[0] > 100
    assert history.loss == pytest.approx(losses, rel=1e-12)
    assert_near(net, plain)


# Options that change no number


def test_threads_and_zero_skipping_change_no_bit():
    x = np.where(X.numpy() > 0.8, X.numpy(), 0)
    options = {"optimizer": "adam", "batch_size": 8, "epochs": 3, "dropout": 0.2, "clip_norm": 0.5, "l1": 1e-3}
    expected = make_net()
    fit(expected, x, Y, threads=1, **options)
    for changes in ({"threads": 2}, {"threads": 8}, {"skip_zeros": True}, {"skip_zeros": False}, {"threads": None}):
        net = make_net()
        fit(net, x, Y, **options, **changes)
        assert_same_bits(net, expected)


def test_zero_skipping_gives_what_dense_arithmetic_gives_where_weights_are_not_finite():
    x = torch.zeros_like(X)
    x[:, 0] = 1
    for skip_zeros in (True, False, None):
        net = make_net("relu")
        with torch.no_grad():
            net[0].weight[3, 5] = math.inf  # 0 · ∞ is not a number
        history = fit(net, x, Y, skip_zeros=skip_zeros, nonfinite="continue")
        assert math.isnan(history.loss[0])
        assert net[2].weight.isnan().all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_may_name_the_nets_own(dtype):
    net, expected = (make_net(dtype=getattr(torch, dtype)) for _ in range(2))
    fit(net, X, Y, precision=dtype)
    fit(expected, X, Y)
    assert_same_bits(net, expected)


# Losses that are not finite


def poisoned_at(batch, epoch=0, value=math.nan):
    x = X.clone()
    x[permutation(ROWS, 0, epoch)[8 * batch + 1]] = value
    return x


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", range(5))
def test_a_loss_that_is_not_finite_stops_at_the_step_before(batch, value):
    net, expected = make_net("relu"), make_net("relu")
    with pytest.raises(
        NonFiniteLossError, match=rf"the loss is \w+ at step {batch} \(epoch 0, batch {batch}\); try a"
    ) as e:
        fit(net, poisoned_at(batch, value=value), Y, batch_size=8, epochs=2, optimizer="adam")
    assert (e.value.step, e.value.batch) == (batch, batch)
    trainer = Trainer(expected, optimizer="adam")
    for rows in torch.from_numpy(permutation(ROWS, 0, 0)).split(8)[:batch]:
        trainer.step(X[rows], Y[rows])
    assert_same_bits(net, expected)


def test_the_epoch_is_told_too():
    trainer = Trainer(make_net(), batch_size=8)
    trainer.epoch(X, Y)
    with pytest.raises(NonFiniteLossError, match=r"at step 8 \(epoch 1, batch 3\)"):
        trainer.epoch(poisoned_at(3, epoch=1), Y)


def test_a_batch_of_an_iterable_is_told_too():
    x = X.clone()
    x[17] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"at step 2 \(epoch 0, batch 2\)"):
        fit(make_net(), list(zip(x.split(8), Y.split(8), strict=True)))


def test_a_single_step_that_is_not_finite_changes_nothing():
    net = make_net()
    trainer = Trainer(net, optimizer="adam")
    with pytest.raises(NonFiniteLossError, match=r"at step 0 "):
        trainer.step(poisoned_at(0)[permutation(ROWS, 0, 0)], Y)
    assert_same_bits(net, make_net())
    assert trainer.steps == 0
    trainer.step(X, Y)
    assert trainer.steps == 1


def test_training_goes_on_when_asked():
    net, plain = make_net(), make_net().to_sequential()
    x = poisoned_at(2)
    history = fit(net, x, Y, batch_size=8, epochs=2, nonfinite="continue", **SGD)
    train_with_torch(plain, x, cross_entropy, torch_optimizer(plain, SGD), epochs=2)
    assert math.isnan(history.loss[0])
    assert history.steps == 10
    torch.testing.assert_close(dict(net.named_parameters()), dict(plain.named_parameters()), equal_nan=True)


# Refusals

NUMBERS_AT_LEAST_0 = (
    "lr",
    "momentum",
    "weight_decay",
    "eps",
    "lr_decay",
    "initial_accumulator_value",
    "loss_beta",
    "l1",
    "l2",
)
SHARES = ("dampening", "alpha", "label_smoothing", "dropout")
BOOLEANS = ("amsgrad", "eps_hat", "penalty_per_row", "centered", "shuffle", "drop_last", "skip_zeros", "nesterov")
OF_OPTIMIZER = {
    "amsgrad": "adam",
    "eps_hat": "adam",
    "eps": "adam",
    "alpha": "rmsprop",
    "centered": "rmsprop",
    "lr_decay": "adagrad",
    "initial_accumulator_value": "adagrad",
}

REFUSALS = [
    *(({name: math.nan}, ValueError, f"{name} must be finite and at least 0; got nan") for name in NUMBERS_AT_LEAST_0),
    *(({name: math.inf}, ValueError, f"{name} must be finite and at least 0; got inf") for name in NUMBERS_AT_LEAST_0),
    *(({name: -0.5}, ValueError, f"{name} must be finite and at least 0; got -0.5") for name in NUMBERS_AT_LEAST_0),
    *(({name: "1"}, TypeError, f"{name} must be a number; got str") for name in (*NUMBERS_AT_LEAST_0, *SHARES)),
    *(({name: True}, TypeError, f"{name} must be a number; got bool") for name in (*NUMBERS_AT_LEAST_0, *SHARES)),
    *(({name: np.ones(3)}, TypeError, f"{name} must be a number; got ndarray") for name in NUMBERS_AT_LEAST_0),
    *(({name: torch.ones(3)}, TypeError, f"{name} must be a number; got Tensor") for name in SHARES),
    *(({name: 1.5}, ValueError, f"{name} must be finite and at least 0 and at most 1; got 1.5") for name in SHARES),
    *(({name: 2}, TypeError, f"{name} must be True or False; got 2") for name in BOOLEANS),
    ({"lr": 10**400}, TypeError, "lr must be a number; got int"),
    ({"dropout": 1.0}, ValueError, "dropout must be below 1; got 1.0"),
    ({"betas": 0.9, "optimizer": "adam"}, TypeError, "betas must be two numbers; got 0.9"),
    ({"betas": (0.9,), "optimizer": "adam"}, TypeError, r"betas must be two numbers; got \(0.9,\)"),
    ({"betas": (0.9, 1.0), "optimizer": "adam"}, ValueError, r"betas must be below 1; got \(0.9, 1.0\)"),
    ({"betas": (-0.1, 0.9), "optimizer": "adam"}, ValueError, "betas must be finite and at least 0 .*; got -0.1"),
    ({"betas": (0.9, None), "optimizer": "adam"}, TypeError, "betas must be a number; got NoneType"),
    ({"nesterov": True}, ValueError, "nesterov needs a momentum above 0 and no dampening; got momentum=0.0, dampen"),
    (
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        ValueError,
        "nesterov needs a momentum above 0 and no dampening; got momentum=0.9, dampening=0.1",
    ),
    ({"clip_norm": 0}, ValueError, "clip_norm must be above 0, or None for no clipping; got 0"),
    ({"clip_value": 0.0}, ValueError, "clip_value must be above 0, or None for no clipping; got 0.0"),
    ({"clip_norm": -1}, ValueError, "clip_norm must be finite and at least 0; got -1"),
    ({"clip_value": math.nan}, ValueError, "clip_value must be finite and at least 0; got nan"),
    ({"clip_value": "1"}, TypeError, "clip_value must be a number; got str"),
    ({"input_scale": math.nan}, ValueError, "input_scale must be finite; got nan"),
    ({"input_shift": math.inf}, ValueError, "input_shift must be finite; got inf"),
    ({"input_scale": None}, TypeError, "input_scale must be a number; got NoneType"),
    ({"ignore_index": 1.0}, TypeError, "ignore_index must be an integer; got float"),
    ({"ignore_index": 2**63}, ValueError, r"ignore_index must be at least -\d+ and below 2\*\*63; got 92"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1 and below .*; got 0"),
    ({"seed": -1}, ValueError, "seed must be at least 0 and below .*; got -1"),
    ({"threads": 0}, ValueError, "threads must be at least 1 and below .*; got 0"),
    ({"threads": 2**40}, ValueError, r"threads must be at least 1 and below 2\*\*31; got 1099511627776"),
    ({"nonfinite": "stop"}, ValueError, "nonfinite must be 'raise' or 'continue'; got 'stop'"),
    ({"nonfinite": []}, ValueError, r"nonfinite must be 'raise' or 'continue'; got \[\]"),
    ({"precision": "half"}, ValueError, "precision must be None, 'float32', 'float64' or 'bfloat16'; got 'half'"),
    ({"precision": "float32"}, ValueError, "precision 'float32' needs a net of that dtype; the net is float64"),
    ({"precision": "bfloat16"}, ValueError, "precision 'bfloat16' needs a float32 net, .*; the net is float64"),
    ({"lr_schedule": "cosine"}, TypeError, "lr_schedule must be a schedule, a function epoch -> lr, or None; got str"),
    ({"loss": "cross_entropi"}, ValueError, r"loss must be one of .*; got 'cross_entropi' \(did you mean 'cross_ent"),
    ({"optimizer": "adamm"}, ValueError, r"optimizer must be one of .*; got 'adamm' \(did you mean 'adam'\?\)"),
    ({"optimizer": torch.optim.Adam}, TypeError, "optimizer must be a string, one of .*; got type"),
    ({"loss": "huber", "loss_beta": 0}, ValueError, "loss_beta must be above 0 for loss 'huber'; got 0"),
    ({"class_weight": np.ones(4)}, ValueError, r"class_weight must have shape \(5,\); got \(4,\)"),
    ({"class_weight": -np.ones(5)}, ValueError, "class_weight must be finite and at least 0 everywhere"),
    ({"class_weight": [1, 1, 1, 1, 1]}, TypeError, "class_weight must be a torch.Tensor or a NumPy array; got list"),
    ({"sample_weight": np.ones(36)}, ValueError, r"sample_weight must have shape \(37,\); got \(36,\)"),
    ({"sample_weight": np.full(37, np.nan)}, ValueError, "sample_weight must be finite and at least 0 everywhere"),
    ({"sample_weight": np.full(37, "a")}, TypeError, "sample_weight must hold real numbers; got <U1"),
    ({"epochs": -1}, ValueError, "epochs must be at least 0 and below .*; got -1"),
    ({"callback": 3}, TypeError, "callback must be callable; got int"),
    ({"early_stopping": EarlyStopping}, TypeError, "early_stopping must be an EarlyStopping; got type"),
    # Options of another optimiser, or of another loss
    ({"momentum": 0.9, "optimizer": "adam"}, ValueError, "momentum is not an option of optimizer 'adam'; got moment"),
    *(({name: 0.5}, ValueError, f"{name} is not an option of optimizer 'sgd'; got {name}=0.5") for name in ("alpha",)),
    ({"amsgrad": True}, ValueError, "amsgrad is not an option of optimizer 'sgd'; got amsgrad=True"),
    ({"betas": (0.8, 0.9)}, ValueError, r"betas is not an option of optimizer 'sgd'; got betas=\(0.8, 0.9\)"),
    (
        {"loss": "mse", "label_smoothing": 0.1},
        ValueError,
        "label_smoothing is not an option of loss 'mse'; got label_s",
    ),
    ({"loss": "mse", "ignore_index": 3}, ValueError, "ignore_index is not an option of loss 'mse'; got ignore_index=3"),
    ({"loss_beta": 0.5}, ValueError, "loss_beta is not an option of loss 'cross_entropy'; got loss_beta=0.5"),
    (
        {"loss": "mse", "class_weight": np.ones(5), "y": X[:, :5]},
        ValueError,
        "class_weight goes with loss 'cross_entropy'; the loss is 'mse'",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSALS, ids=lambda value: str(value)[:40])
def test_wrong_options_are_refused_before_anything_is_changed(options, error, message):
    options = dict(options)
    y = options.pop("y", Y)
    if "optimizer" not in options:
        options["optimizer"] = next((OF_OPTIMIZER[name] for name in options if name in OF_OPTIMIZER), "sgd")
        if "is not an option" in message:
            del options["optimizer"]
    net = make_net()
    versions = [parameter._version for parameter in net.parameters()]
    with pytest.raises(error, match=message):
        fit(net, X, y, **options)
    assert_same_bits(net, make_net())
    assert versions == [parameter._version for parameter in net.parameters()]


def test_every_option_has_a_refusal():
    refused = {name for options, *_ in REFUSALS for name in options}
    assert set(inspect.signature(check_options).parameters) <= refused


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("learning_rate", None),
        ("batchsize", "batch_size"),
        ("dropuot", "dropout"),
        ("labelsmoothing", "label_smoothing"),
        ("clip_grad_norm", "clip_norm"),
        ("classweight", "class_weight"),
        ("class_weigth", "class_weight"),
    ],
)
@pytest.mark.parametrize("call", [Trainer, lambda net, **options: fit(net, X, Y, **options)], ids=["Trainer", "fit"])
def test_an_unknown_option_tells_the_nearest_known_one(call, given, nearest):
    net = make_net()
    hint = rf" \(did you mean '{nearest}'\?\)" if nearest else "$"
    with pytest.raises(TypeError, match=f"there is no training option '{given}'{hint}"):
        call(net, **{given: 1})
    assert_same_bits(net, make_net())


@pytest.mark.parametrize("given", ["epoch", "validaton", "call_back"])
def test_fit_knows_its_own_options_too(given):
    nearest = {"epoch": "epochs", "validaton": "validation", "call_back": "callback"}[given]
    with pytest.raises(TypeError, match=rf"there is no training option '{given}' \(did you mean '{nearest}'\?\)"):
        fit(make_net(), X, Y, **{given: 1})


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)])
def test_numbers_may_be_of_any_kind(number):
    net, expected = make_net(), make_net()
    fit(net, X, Y, lr=number, batch_size=np.int64(8))
    fit(expected, X, Y, lr=0.5, batch_size=8)
    assert_same_bits(net, expected)
