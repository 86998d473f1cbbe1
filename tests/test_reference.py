"""The references against what they do not depend on: central differences, autograd, torch.optim, literal loops."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from twolayer import registry
from twolayer.reference import numpy as reference
from twolayer.reference import torch as torch_reference
from twolayer.reference.random import splitmix64

every_activation = pytest.mark.parametrize("activation", reference.ACTIVATIONS)
every_loss = pytest.mark.parametrize("loss", reference.LOSSES)

# Dense over where the activations bend, sparse out to where they saturate; no kink (0, softplus's 20) is hit.
Z = np.concatenate([np.linspace(-6, 6, 240), np.linspace(-60, 60, 80)])


def problem(loss="mse", batch=6, in_features=5, hidden=4, out=3, dtype=np.float64):
    """Random x, targets of the loss's kind, and parameters by name."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((batch, in_features)).astype(dtype)
    y = rng.integers(0, out, batch) if loss == "cross_entropy" else rng.standard_normal((batch, out)).astype(dtype)
    shapes = {"w1": (hidden, in_features), "b1": hidden, "w2": (out, hidden), "b2": out}
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return x, y, params


def central_differences(function, at):
    """The gradient of a scalar function of an array, which is changed and put back."""
    gradient, step = np.empty_like(at), 1e-6
    for index in np.ndindex(at.shape):
        kept = at[index]
        at[index] = kept + step
        above = function()
        at[index] = kept - step
        gradient[index] = (above - function()) / (2 * step)
        at[index] = kept
    return gradient


# Activations


@every_activation
def test_derivative_is_the_slope_of_the_value(activation):
    value, derivative = reference.ACTIVATIONS[activation]
    step = 1e-6
    slope = (value(Z + step) - value(Z - step)) / (2 * step)
    np.testing.assert_allclose(derivative(Z), slope, rtol=1e-7, atol=1e-7)


@every_activation
def test_activation_and_derivative_equal_torch(activation):
    # The kinks and what no difference quotient reaches: both zeros, softplus's threshold, NaN.
    points = np.concatenate([Z, [0.0, -0.0, 20.0, np.nan]])
    value, derivative = reference.ACTIVATIONS[activation]
    z = torch.tensor(points, requires_grad=True)
    output = torch_reference.ACTIVATIONS[activation](z)
    (gradient,) = torch.autograd.grad(output.sum(), z)
    tolerance = {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(value(points), output.detach().numpy(), **tolerance)
    np.testing.assert_allclose(derivative(points), gradient.numpy(), **tolerance)


@every_activation
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_keeps_its_dtype_and_raises_no_warning_far_out(activation, dtype):
    z = np.array([-1, 1], dtype=dtype) * np.sqrt(np.finfo(dtype).max, dtype=dtype) / 2  # its square is still finite
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for function in reference.ACTIVATIONS[activation]:
            result = function(z)
            assert result.dtype == dtype
            assert np.isfinite(result).all()


def test_every_reference_table_has_the_registrys_names():
    assert list(reference.ACTIVATIONS) == list(registry.ACTIVATIONS)
    assert list(torch_reference.ACTIVATIONS) == list(registry.ACTIVATIONS)
    assert list(torch_reference.ACTIVATION_BACKWARD) == list(registry.ACTIVATIONS)
    assert list(reference.LOSSES) == list(torch_reference.LOSSES) == list(registry.LOSSES)
    assert list(reference.OPTIMIZERS) == list(registry.OPTIMIZERS)


# Losses

HALF_WEIGHTS = np.array([0.5, 2.0, 1.25])
LOSS_CASES = [  # loss, its options, whether the targets of a cross entropy are distributions
    *((loss, {}, False) for loss in reference.LOSSES),
    *(
        ("cross_entropy", options, distributions)
        for distributions in (False, True)
        for options in (
            {"label_smoothing": 0.2},
            {"class_weight": HALF_WEIGHTS},
            {"class_weight": HALF_WEIGHTS, "label_smoothing": 0.3},
        )
    ),
    ("cross_entropy", {}, True),
    ("cross_entropy", {"ignore_index": 1}, False),
    ("cross_entropy", {"ignore_index": -7, "class_weight": HALF_WEIGHTS, "label_smoothing": 0.1}, False),
    ("smooth_l1", {"beta": 0.3}, False),
    ("smooth_l1", {"beta": 0.0}, False),
    ("huber", {"beta": 0.3}, False),
]
every_loss_case = pytest.mark.parametrize(("loss", "options", "distributions"), LOSS_CASES, ids=str)


def loss_data(loss, options, distributions, rows=6):
    rng = np.random.default_rng(1)
    z = rng.standard_normal((rows, 3))
    if loss != "cross_entropy":
        return z, rng.standard_normal((rows, 3))
    if distributions:
        return z, rng.dirichlet(np.ones(3), rows)
    y = rng.integers(0, 3, rows)
    y[2] = options.get("ignore_index", y[2])
    return z, y


TORCH_LOSSES = {
    "cross_entropy": functional.cross_entropy,
    "mse": functional.mse_loss,
    "mse_sum": functional.mse_loss,
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "huber": functional.huber_loss,
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
}


def torch_loss(loss, z, y, reduction=None, **options):
    """The function in torch.nn.functional, called by its own names of the options."""
    torch_names = {"class_weight": "weight", "beta": "delta" if loss == "huber" else "beta"}
    options = {torch_names.get(name, name): option for name, option in options.items()}
    if "weight" in options:
        options["weight"] = torch.tensor(options["weight"])
    return TORCH_LOSSES[loss](z, y, reduction=reduction or reference.LOSSES[loss].reduction, **options)


@every_loss
def test_torch_loss_equals_the_numpy_reference(loss):
    z, y = loss_data(loss, {}, False)
    expected = reference.LOSSES[loss].value(z, y)
    assert torch_reference.LOSSES[loss](torch.tensor(z), torch.tensor(y)).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("loss", ["mse", "mse_sum"])
def test_squared_torch_losses_broadcast_one_target_over_the_batch(loss):
    z, target = np.random.default_rng(2).standard_normal((4, 3)), np.array([1.0, -2.0, 0.5])
    expected = reference.LOSSES[loss].value(z, target)
    value = torch_reference.LOSSES[loss](torch.tensor(z), torch.tensor(target)).item()
    assert value == pytest.approx(expected, rel=1e-13)


@every_loss_case
def test_loss_and_gradient_equal_torch_and_central_differences(loss, options, distributions):
    z, y = loss_data(loss, options, distributions)
    z_torch = torch.tensor(z, requires_grad=True)
    expected = torch_loss(loss, z_torch, torch.tensor(y), **options)
    (expected_gradient,) = torch.autograd.grad(expected, z_torch)

    rule = reference.LOSSES[loss]
    gradient = rule.gradient(z, y, **options)
    assert rule.value(z, y, **options) == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient.numpy(), rtol=1e-12, atol=1e-15)
    differences = central_differences(lambda: rule.value(z, y, **options), z)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


@every_loss_case
def test_sample_weights_weigh_torchs_unreduced_losses(loss, options, distributions):
    z, y = loss_data(loss, options, distributions)
    weight = np.array([0.5, 0.0, 3.0, 1.0, 0.25, 2.0])
    z_torch, y_torch, weight_torch = torch.tensor(z, requires_grad=True), torch.tensor(y), torch.tensor(weight)
    rows = torch_loss(loss, z_torch, y_torch, reduction="none", **options)
    if loss != "cross_entropy":
        counts_for = torch.full((6,), 3.0, dtype=torch.float64)
        rows = rows.sum(1)
    elif distributions:
        counts_for = torch.ones(6, dtype=torch.float64)
    else:
        kept = y_torch != options.get("ignore_index", -100)
        counts_for = kept * torch.tensor(options.get("class_weight", np.ones(3)))[y_torch.where(kept, 0)]
    total = weight_torch @ rows
    expected = total if loss == "mse_sum" else total / (weight_torch @ counts_for)
    (expected_gradient,) = torch.autograd.grad(expected, z_torch)

    rule = reference.LOSSES[loss]
    assert rule.value(z, y, sample_weight=weight, **options) == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(
        rule.gradient(z, y, sample_weight=weight, **options), expected_gradient.numpy(), rtol=1e-12, atol=1e-15
    )


@every_loss_case
def test_sums_of_parts_add_up_to_the_loss_of_the_whole(loss, options, distributions):
    z, y = loss_data(loss, options, distributions, rows=10)
    rule = reference.LOSSES[loss]
    parts = [rule.sums(z[part], y[part], **options) for part in (slice(4), slice(4, None))]
    divisor = sum(part.divisor for part in parts) if rule.reduction == "mean" else 1
    whole = sum(part.total for part in parts) / divisor
    assert whole == pytest.approx(rule.value(z, y, **options), rel=1e-13)


@every_loss_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_is_torchs_at_extreme_outputs(loss, options, distributions, dtype):
    _, y = loss_data(loss, options, distributions)
    z = np.array([[1e4, 0, -1e4], [-1e4, 1e4, 0], [1e4, 1e4, 1e4], [0, 0, 0], [-1e4, -1e4, 3], [88, -88, 104]], dtype)
    y = y.astype(dtype) if y.dtype == np.float64 else y
    options = {name: o.astype(dtype) if name == "class_weight" else o for name, o in options.items()}
    z_torch = torch.tensor(z, requires_grad=True)
    expected = torch_loss(loss, z_torch, torch.tensor(y), **options)
    (expected_gradient,) = torch.autograd.grad(expected, z_torch)
    rule, epsilon = reference.LOSSES[loss], float(np.finfo(dtype).eps)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        value, gradient = rule.value(z, y, **options), rule.gradient(z, y, **options)
    assert np.isfinite(value) and gradient.dtype == dtype
    assert value == pytest.approx(expected.item(), rel=8 * epsilon)
    np.testing.assert_allclose(gradient, expected_gradient.numpy(), rtol=8 * epsilon, atol=epsilon)


def test_cross_entropy_survives_huge_and_infinite_outputs():
    rule = reference.LOSSES["cross_entropy"]
    z, labels = np.array([[1e300, 0.0], [0.0, -1e300], [1.0, -np.inf]]), np.array([0, 0, 0])
    with np.errstate(over="raise", invalid="raise"):
        assert rule.value(z, labels) == 0
        np.testing.assert_array_equal(rule.gradient(z, labels), np.zeros((3, 2)))


def test_cross_entropy_of_ignored_rows_only_is_torchs():
    rule, z, labels = reference.LOSSES["cross_entropy"], np.ones((2, 3)), np.array([-100, -100])
    z_torch = torch.tensor(z, requires_grad=True)
    expected = functional.cross_entropy(z_torch, torch.tensor(labels))
    (expected_gradient,) = torch.autograd.grad(expected, z_torch)
    assert np.isnan(rule.value(z, labels)) and np.isnan(expected.item())
    np.testing.assert_array_equal(rule.gradient(z, labels), expected_gradient.numpy())


def test_gradients_of_absolute_errors_are_torchs_at_the_kinks():
    z = np.array([[0.0, -0.0, 0.5, -0.5]])
    for loss, options in (("l1", {}), ("smooth_l1", {"beta": 0.5}), ("huber", {"beta": 0.5})):
        z_torch = torch.tensor(z, requires_grad=True)
        torch_loss(loss, z_torch, torch.zeros_like(z_torch), **options).backward()
        gradient = reference.LOSSES[loss].gradient(z, np.zeros_like(z), **options)
        np.testing.assert_array_equal(gradient, z_torch.grad.numpy())


@every_loss
def test_loss_and_gradient_of_an_output_that_is_not_a_number_are_none_either(loss):
    z, y = loss_data(loss, {}, False)
    z[0, 1] = np.nan
    assert np.isnan(reference.LOSSES[loss].value(z, y))
    assert np.isnan(reference.LOSSES[loss].gradient(z, y)[0, 1])


@pytest.mark.parametrize("loss", [name for name, loss in reference.LOSSES.items() if loss.targets == "values"])
def test_losses_of_values_broadcast_one_target_over_the_batch(loss):
    rule = reference.LOSSES[loss]
    z, target = np.random.default_rng(2).standard_normal((4, 3)), np.array([1.0, -2.0, 0.5])
    whole = np.tile(target, (4, 1))
    assert rule.value(z, target) == rule.value(z, whole)
    np.testing.assert_array_equal(rule.gradient(z, target), rule.gradient(z, whole))


@every_loss
def test_a_loss_refuses_an_option_that_is_not_its_own(loss):
    z, y = loss_data(loss, {}, False)
    with pytest.raises(TypeError, match="no_option"):
        reference.LOSSES[loss].value(z, y, no_option=1)
    others = {"class_weight", "label_smoothing", "ignore_index", "beta"} - set(registry.LOSSES[loss].options)
    for option in others:
        with pytest.raises(TypeError, match=option):
            reference.LOSSES[loss].gradient(z, y, **{option: 1})


# Optimisers

OPTIMIZER_CASES = {
    "sgd": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.5, "nesterov": True},
    ],
    "adam": [{}, {"betas": (0.5, 0.9)}, {"eps": 1e-2}, {"amsgrad": True, "betas": (0.9, 0.5)}],
    "adamw": [{}, {"betas": (0.5, 0.9)}, {"eps": 1e-2}, {"amsgrad": True, "betas": (0.9, 0.5)}],
    "rmsprop": [
        {},
        {"alpha": 0.5, "eps": 1e-2},
        {"momentum": 0.9},
        {"centered": True},
        {"centered": True, "momentum": 0.5, "alpha": 0.8},
    ],
    "adagrad": [{}, {"lr_decay": 0.1}, {"initial_accumulator_value": 0.5, "eps": 1e-2}],
}
TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}
every_optimizer_case = pytest.mark.parametrize(
    ("optimizer", "options"), [(name, options) for name, cases in OPTIMIZER_CASES.items() for options in cases], ids=str
)


def test_adam_with_eps_hat_equals_scikit_learn_over_20_steps():
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

    rng = np.random.default_rng(3)
    param, state = rng.standard_normal((4, 3)), {}
    expected = param.copy()
    optimizer = AdamOptimizer([expected], learning_rate_init=0.1, beta_2=0.99, epsilon=1e-2)
    for _ in range(20):
        grad = 0.1 * rng.standard_normal(param.shape)
        reference.OPTIMIZERS["adam"].update(param, grad, state, lr=0.1, betas=(0.9, 0.99), eps=1e-2, eps_hat=True)
        optimizer.update_params([expected], [grad])
        np.testing.assert_allclose(param, expected, rtol=1e-12, atol=1e-14)


@every_optimizer_case
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_optimizer_equals_torch_over_20_steps(optimizer, options, weight_decay):
    rng = np.random.default_rng(3)
    param, state = rng.standard_normal((4, 3)), {}
    expected = torch.nn.Parameter(torch.tensor(param))
    torch_optimizer = TORCH_OPTIMIZERS[optimizer]([expected], lr=0.1, weight_decay=weight_decay, **options)
    for step in range(20):
        grad, lr = rng.standard_normal(param.shape), 0.1 / (1 + step)
        kept = grad.copy()
        reference.OPTIMIZERS[optimizer].update(param, grad, state, lr=lr, weight_decay=weight_decay, **options)
        np.testing.assert_array_equal(grad, kept)
        expected.grad = torch.tensor(grad)
        torch_optimizer.param_groups[0]["lr"] = lr
        torch_optimizer.step()
        np.testing.assert_allclose(param, expected.detach().numpy(), rtol=1e-12, atol=1e-14)

    arrays = {name: array for name, array in state.items() if name != "step"}
    torch_state = torch_optimizer.state[expected]
    assert arrays.keys() == {name for name, value in torch_state.items() if name != "step" and value is not None}
    for name, array in arrays.items():
        np.testing.assert_allclose(array, torch_state[name].numpy(), rtol=1e-12, atol=1e-14, err_msg=name)


@every_optimizer_case
def test_registry_tells_which_states_an_optimizer_keeps(optimizer, options):
    row, state = registry.OPTIMIZERS[optimizer], {}
    row.update(np.ones(2), np.ones(2), state, lr=0.1, **options)
    given = {**dict.fromkeys(row.options, 0), **options}
    assert [name for name in row.states if row.keeps(name, given)] == [name for name in row.states if name in state]
    assert state.keys() - {"step"} <= set(row.states)


@pytest.mark.parametrize("optimizer", TORCH_OPTIMIZERS)
def test_optimizer_has_torchs_options_and_defaults(optimizer):
    torchs = TORCH_OPTIMIZERS[optimizer]([torch.nn.Parameter(torch.zeros(1))]).defaults
    parameters = inspect.signature(registry.OPTIMIZERS[optimizer].update).parameters
    for name in {*registry.OPTIMIZERS[optimizer].options} - {"eps_hat"}:  # which is scikit-learn's
        assert name in torchs
        if name != "lr":
            assert parameters[name].default == torchs[name], name


# The net


@every_activation
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_equal_torch_autograd(activation, bias):
    x, grad_y, params = problem()
    if not bias:
        params["b1"] = params["b2"] = None
    leaves = {
        name: None if p is None else torch.tensor(p, requires_grad=True) for name, p in {"x": x, **params}.items()
    }
    expected = torch_reference.two_layer(*leaves.values(), activation)
    expected.backward(torch.tensor(grad_y))

    y, z1, h = reference.forward(x, **params, activation=activation)
    gradients = reference.backward(grad_y, x, params["w1"], params["w2"], z1, activation)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(h, reference.ACTIVATIONS[activation][0](z1))
    for name, leaf in leaves.items():
        if leaf is not None:
            np.testing.assert_allclose(gradients[name], leaf.grad.numpy(), rtol=1e-12, atol=1e-14, err_msg=name)
    without_x = reference.backward(grad_y, x, params["w1"], params["w2"], z1, activation, input_gradient=False)
    assert without_x.keys() == gradients.keys() - {"x"}


@every_activation
def test_net_gradients_are_central_differences_of_the_loss(activation):
    x, labels, params = problem("cross_entropy")
    loss = reference.LOSSES["cross_entropy"]

    def value():
        return loss.value(reference.forward(x, **params, activation=activation)[0], labels)

    z, z1, _ = reference.forward(x, **params, activation=activation)
    grad_z = loss.gradient(z, labels)
    gradients = reference.backward(grad_z, x, params["w1"], params["w2"], z1, activation)
    for name, array in {"x": x, **params}.items():
        np.testing.assert_allclose(
            gradients[name], central_differences(value, array), rtol=1e-6, atol=1e-8, err_msg=name
        )


@every_activation
def test_passes_with_dropout_equal_torch_autograd(activation):
    x, grad_y, params = problem()
    mask = reference.dropout_mask(1, 2, 6, 4, 0.4)
    leaves = {name: torch.tensor(p, requires_grad=True) for name, p in {"x": x, **params}.items()}
    hidden = torch_reference.ACTIVATIONS[activation](functional.linear(leaves["x"], leaves["w1"], leaves["b1"]))
    expected = functional.linear(hidden * torch.tensor(mask), leaves["w2"], leaves["b2"])
    expected.backward(torch.tensor(grad_y))

    y, z1, _ = reference.forward(x, **params, activation=activation, mask=mask)
    gradients = reference.backward(grad_y, x, params["w1"], params["w2"], z1, activation, mask=mask)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(gradients[name], leaf.grad.numpy(), rtol=1e-12, atol=1e-14, err_msg=name)


def test_passes_round_every_factor_of_a_product_and_nothing_else():
    x, grad_y, params = problem()

    def rounded(a):
        return np.round(a, 1)

    y, z1, h = reference.forward(x, **params, activation="tanh", rounded=rounded)
    np.testing.assert_array_equal(z1, rounded(x) @ rounded(params["w1"]).T + params["b1"])
    np.testing.assert_array_equal(h, rounded(np.tanh(z1)))
    np.testing.assert_array_equal(y, h @ rounded(params["w2"]).T + params["b2"])
    gradients = reference.backward(grad_y, x, params["w1"], params["w2"], z1, "tanh", rounded=rounded)
    grad_z1 = rounded((rounded(grad_y) @ rounded(params["w2"])) * reference.ACTIVATIONS["tanh"][1](z1))
    np.testing.assert_array_equal(gradients["b2"], rounded(grad_y).sum(axis=0))
    np.testing.assert_array_equal(gradients["w2"], rounded(grad_y).T @ h)
    np.testing.assert_array_equal(gradients["w1"], grad_z1.T @ rounded(x))
    np.testing.assert_array_equal(gradients["x"], grad_z1 @ rounded(params["w1"]))


# Penalties and clipping


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
def test_penalty_is_its_formula_and_its_gradient_the_slope(l1, l2):
    _, _, params = problem()
    w1, w2 = params["w1"], params["w2"]
    expected = l1 * (np.abs(w1).sum() + np.abs(w2).sum()) + l2 / 2 * ((w1**2).sum() + (w2**2).sum())
    assert reference.penalty(w1, w2, l1, l2) == pytest.approx(expected, rel=1e-13)
    for w in (w1, w2):
        slope = central_differences(lambda: reference.penalty(w1, w2, l1, l2), w)
        np.testing.assert_allclose(reference.penalty_gradient(w, l1, l2), slope, rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(reference.penalty_gradient(np.zeros(3), l1, l2), np.zeros(3))


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 3.0, 1e6])
@pytest.mark.parametrize("clip_value", [0.0, 0.2])
@pytest.mark.parametrize("special", [None, np.nan, np.inf], ids=str)
def test_clip_gradients_equals_torch(clip_norm, clip_value, special):
    _, _, gradients = problem()
    if special is not None:
        gradients["w2"][1, 1] = special
    given = {name: gradient.copy() for name, gradient in gradients.items()}
    leaves = {name: torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for name, g in gradients.items()}
    for name, leaf in leaves.items():
        leaf.grad = torch.tensor(gradients[name])
    if clip_norm:
        torch.nn.utils.clip_grad_norm_(leaves.values(), clip_norm)
    if clip_value:
        torch.nn.utils.clip_grad_value_(leaves.values(), clip_value)

    with np.errstate(invalid="ignore"):
        clipped = reference.clip_gradients(gradients, clip_norm, clip_value)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(clipped[name], leaf.grad.numpy(), rtol=1e-13, err_msg=name)
        np.testing.assert_array_equal(gradients[name], given[name])


# Dropout


def literal_dropout_mask(seed, step, rows, hidden, dropout):
    """The documented hash, one value at a time in exact integers."""
    mask32, mask64 = 2**32 - 1, 2**64 - 1
    mask = np.empty((rows, hidden))
    for row in range(rows):
        z = (seed + step * 0x9E3779B97F4A7C15 + row * 0xD1B54A32D192ED03) & mask64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask64
        key = z ^ (z >> 31)
        for unit in range(hidden):
            h = (unit * 0x9E3779B9 + (key & mask32)) & mask32
            h = ((h ^ (h >> 16)) * 0x21F0AAAD) & mask32
            h = ((h ^ (h >> 15)) + (key >> 32)) & mask32
            h = ((h ^ (h >> 16)) * 0x735A2D97) & mask32
            h ^= h >> 15
            mask[row, unit] = 0 if h < int(dropout * 2**32) else 1 / (1 - dropout)
    return mask


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0, 1), (7, 12345), (2**64 - 1, 2**40), (2**63, 3)])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 0.999])
def test_dropout_mask_equals_the_literal_hash(seed, step, dropout):
    mask = reference.dropout_mask(seed, step, 5, 19, dropout)
    np.testing.assert_array_equal(mask, literal_dropout_mask(seed, step, 5, 19, dropout))


def test_dropout_mask_is_pinned():
    kept = reference.dropout_mask(42, 3, 3, 8, 0.5) / 2
    assert kept.astype(int).tolist() == [
        [1, 0, 0, 1, 1, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("dropout", [-0.1, 1.0, np.nan])
def test_dropout_mask_refuses_a_share_it_cannot_drop(dropout):
    with pytest.raises(ValueError, match="dropout must be"):
        reference.dropout_mask(0, 0, 1, 1, dropout)


@pytest.mark.parametrize("dropout", [0.05, 0.3, 0.5, 0.9])
def test_dropout_drops_its_share_in_every_row_unit_and_step(dropout):
    steps, rows, hidden = 40, 200, 150
    dropped = np.stack([reference.dropout_mask(5, step, rows, hidden, dropout) == 0 for step in range(steps)])
    deviation = np.sqrt(dropout * (1 - dropout))
    for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):  # of all, by unit, by row, by step
        count = np.prod([dropped.shape[axis] for axis in axes])
        z_scores = (dropped.mean(axis=axes) - dropout) / (deviation / np.sqrt(count))
        assert np.abs(z_scores).max() < 4.5


@pytest.mark.parametrize("lag", [1, 2, 8, 16, 64])
def test_dropout_of_neighbours_is_uncorrelated(lag):
    steps, rows, hidden, dropout = 80, 160, 160, 0.3
    masks = np.stack([reference.dropout_mask(5, step, rows, hidden, dropout) for step in range(steps)]) - 1
    of_next_seed = np.stack([reference.dropout_mask(5 + lag, step, rows, hidden, dropout) for step in range(steps)]) - 1
    pairs = {
        "units": (masks[:, :, lag:], masks[:, :, :-lag]),
        "rows": (masks[:, lag:], masks[:, :-lag]),
        "steps": (masks[lag:], masks[:-lag]),
        "units and rows": (masks[:, lag:, lag:], masks[:, :-lag, :-lag]),
        "steps and rows": (masks[lag:, :-lag], masks[:-lag, lag:]),
        "seeds": (of_next_seed, masks),
    }
    variance = dropout / (1 - dropout)
    for name, (one, other) in pairs.items():
        correlation = (one * other).mean() / variance
        assert abs(correlation) < 4.5 / np.sqrt(one.size), name


# Batch order


def literal_permutation(n, seed, epoch):
    """The documented generator, one draw at a time in exact integers."""
    mask = 2**64 - 1
    state = (seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xD1B54A32D192ED03) & mask

    def draw():
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    state = draw()
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = (draw() * (i + 1)) >> 64
        order[i], order[j] = order[j], order[i]
    return order


def test_splitmix64_gives_the_published_sequence():
    # The first outputs from state 1234567, as in Vigna's splitmix64.c.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, 5).tolist() == published


@pytest.mark.parametrize("n", [0, 1, 2, 3, 64, 1000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (123456789, 29), (2**64 - 1, 2**31), (-1, 0)])
def test_permutation_equals_the_literal_generator(n, seed, epoch):
    order = reference.permutation(n, seed, epoch)
    assert order.dtype == np.int64
    assert order.tolist() == literal_permutation(n, seed, epoch)
    assert sorted(order) == list(range(n))


def test_permutation_is_pinned():
    assert reference.permutation(10, 0, 0).tolist() == [3, 8, 0, 6, 2, 9, 7, 1, 4, 5]
    assert reference.permutation(10, 42, 3).tolist() == [2, 5, 7, 3, 4, 9, 6, 1, 8, 0]


@pytest.mark.parametrize("n", [-1, 2**32])
def test_permutation_refuses_a_size_it_cannot_order(n):
    with pytest.raises(ValueError, match="n must be"):
        reference.permutation(n, 0, 0)


# Training


def torch_train(
    params,
    x,
    y,
    *,
    activation,
    loss,
    batch_size,
    epochs,
    order,
    optimizer="sgd",
    lr,
    loss_options=None,
    l1=0.0,
    l2=0.0,
    clip_norm=0.0,
    clip_value=0.0,
    dropout=0.0,
    frozen=(),
    **optimizer_options,
):
    """Autograd and torch.optim over the batches in ``order(epoch)``; returns the loss of every step."""
    leaves = {name: torch.nn.Parameter(torch.tensor(p), requires_grad=name not in frozen) for name, p in params.items()}
    trained = [leaf for leaf in leaves.values() if leaf.requires_grad]
    torch_optimizer = TORCH_OPTIMIZERS[optimizer](trained, lr=0.0, **optimizer_options)
    x, y = torch.tensor(x), torch.tensor(y)
    losses = []
    for epoch in range(epochs):
        for rows in torch.tensor(order(epoch)).split(batch_size):
            step = len(losses)
            hidden = torch_reference.ACTIVATIONS[activation](functional.linear(x[rows], leaves["w1"], leaves["b1"]))
            mask = reference.dropout_mask(5, step, *hidden.shape, dropout)
            output = functional.linear(hidden * torch.tensor(mask), leaves["w2"], leaves["b2"])
            batch_loss = torch_loss(loss, output, y[rows], **(loss_options or {}))
            for w in (leaves["w1"], leaves["w2"]):
                batch_loss = batch_loss + l1 * w.abs().sum() + l2 / 2 * w.square().sum()
            torch_optimizer.zero_grad()
            batch_loss.backward()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(trained, clip_norm)
            if clip_value:
                torch.nn.utils.clip_grad_value_(trained, clip_value)
            torch_optimizer.param_groups[0]["lr"] = lr(step, epoch) if callable(lr) else lr
            torch_optimizer.step()
            losses.append(batch_loss.item())
    return losses, {name: leaf.detach().numpy() for name, leaf in leaves.items()}


def assert_train_equals_torch(params, x, y, **options):
    """Trains in place."""
    expected_losses, expected = torch_train(
        params, x, y, order=lambda epoch: reference.permutation(26, 5, epoch), **options
    )
    curves = reference.train(params, x, y, seed=5, **options)
    np.testing.assert_allclose(curves.step_loss, expected_losses, rtol=1e-10)
    for name, param in params.items():
        np.testing.assert_allclose(param, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


@every_loss
@pytest.mark.parametrize("shuffle", [True, False])
def test_train_equals_autograd_and_torch_optim(loss, shuffle):
    x, y, params = problem(loss, batch=26)
    options = {"activation": "tanh", "loss": loss, "batch_size": 8, "epochs": 3}
    sgd_options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3}

    def order(epoch):
        return reference.permutation(26, 5, epoch) if shuffle else np.arange(26)

    expected_losses, expected = torch_train(params, x, y, order=order, **options, **sgd_options)
    curves = reference.train(params, x, y, shuffle=shuffle, seed=5, **options, **sgd_options)

    np.testing.assert_allclose(curves.step_loss, expected_losses, rtol=1e-10)
    for name, param in params.items():
        np.testing.assert_allclose(param, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
    per_epoch = np.reshape(expected_losses, (3, 4))
    np.testing.assert_allclose(curves.last_batch_loss, per_epoch[:, -1], rtol=1e-10)
    np.testing.assert_allclose(curves.loss, per_epoch @ [8, 8, 8, 2] / 26, rtol=1e-10)


@every_optimizer_case
@pytest.mark.parametrize("loss", ["cross_entropy", "huber"])
def test_train_with_every_optimizer_equals_torch(loss, optimizer, options):
    x, y, params = problem(loss, batch=26)
    options = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.05, **options}
    assert_train_equals_torch(params, x, y, activation="tanh", loss=loss, batch_size=8, epochs=3, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.4},
        {"l1": 0.02},
        {"l2": 0.1},
        {"clip_norm": 0.1},
        {"clip_value": 0.01},
        {"clip_norm": 0.3, "clip_value": 0.05, "l1": 0.02, "l2": 0.1, "dropout": 0.2},
        {"frozen": ("w1",), "clip_norm": 0.1, "l1": 0.02},
        {"frozen": ("w2", "b1"), "clip_norm": 0.1, "l2": 0.1, "weight_decay": 0.05},
        {"loss_options": {"label_smoothing": 0.2, "class_weight": HALF_WEIGHTS, "ignore_index": 1}},
        {"lr": lambda step, epoch: 0.1 / (1 + step) + 0.01 * epoch},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_train_with_every_option_equals_torch(optimizer, options):
    x, y, params = problem("cross_entropy", batch=26)
    before = {name: param.copy() for name, param in params.items()}
    options = {"optimizer": optimizer, "lr": 0.05, "weight_decay": 0.0, **options}
    assert_train_equals_torch(params, x, y, activation="gelu", loss="cross_entropy", batch_size=8, epochs=3, **options)
    for name in params:
        assert np.array_equal(params[name], before[name]) == (name in options.get("frozen", ()))


def test_train_takes_a_rate_for_each_step():
    x, y, params = problem(batch=10)
    same = {name: param.copy() for name, param in params.items()}
    options = {"activation": "tanh", "loss": "mse", "batch_size": 4, "epochs": 2}
    rates = np.linspace(0.1, 0.2, 6)
    curves = reference.train(params, x, y, lr=rates, **options)
    assert curves == reference.train(same, x, y, lr=lambda step, epoch: float(rates[step]), **options)
    assert curves != reference.train(same, x, y, lr=0.1, **options)


def test_train_weighs_rows_as_if_they_stood_there_that_often():
    x, y, params = problem("cross_entropy")
    same = {name: param.copy() for name, param in params.items()}
    weight = np.array([1.0, 2.0, 0.0, 3.0, 1.0, 1.0])
    often = np.repeat(np.arange(6), weight.astype(int))
    options = {"activation": "tanh", "loss": "cross_entropy", "batch_size": 8, "epochs": 3, "lr": 0.1, "shuffle": False}
    curves = reference.train(params, x, y, sample_weight=weight, **options)
    expected = reference.train(same, x[often], y[often], **options)
    np.testing.assert_allclose(curves.step_loss, expected.step_loss, rtol=1e-12)
    for name, param in params.items():
        np.testing.assert_allclose(param, same[name], rtol=1e-11, err_msg=name)


def test_train_drops_the_last_short_batch_of_the_shuffled_order():
    x, y, params = problem(batch=10)
    options = {"activation": "relu", "loss": "mse", "batch_size": 4, "epochs": 1, "lr": 0.1}
    kept = reference.permutation(10, 0, 0)[:8]
    same = {name: param.copy() for name, param in params.items()}
    curves = reference.train(params, x, y, drop_last=True, **options)
    expected = reference.train(same, x[kept], y[kept], shuffle=False, **options)
    assert curves == expected
    assert len(curves.step_loss) == 2


def test_train_broadcasts_one_target_and_leaves_missing_biases_out():
    x, _, params = problem()
    params["b1"] = params["b2"] = None
    same = {name: None if param is None else param.copy() for name, param in params.items()}
    target = np.array([1.0, -2.0, 0.5])
    options = {"activation": "relu", "loss": "mse_sum", "batch_size": 4, "epochs": 2, "lr": 1e-3}
    curves = reference.train(params, x, target, **options)
    assert curves == reference.train(same, x, np.tile(target, (6, 1)), **options)
    assert params["b1"] is None and params["b2"] is None
    assert curves.loss[1] < curves.loss[0]


def test_train_computes_in_the_parameters_dtype():
    x, y, params = problem("cross_entropy", dtype=np.float32)
    options = {"activation": "sigmoid", "loss": "cross_entropy", "batch_size": 4, "epochs": 1, "lr": 0.1}
    double = {name: param.astype(np.float64) for name, param in params.items()}
    single_curves = reference.train(params, x, y, **options)
    double_curves = reference.train(double, x, y, **options)
    assert {param.dtype for param in params.values()} == {np.dtype(np.float32)}
    assert single_curves.loss != double_curves.loss
    np.testing.assert_allclose(single_curves.loss, double_curves.loss, rtol=1e-5)


def test_train_refuses_what_makes_no_batch_or_does_not_fit():
    x, y, params = problem()
    before = {name: param.copy() for name, param in params.items()}
    options = {"activation": "relu", "loss": "mse", "epochs": 1, "lr": 0.1}
    with pytest.raises(ValueError, match="at least one batch"):
        reference.train(params, x, y, batch_size=7, drop_last=True, **options)
    with pytest.raises(ValueError, match="y must be"):
        reference.train(params, x, y[:, 0], batch_size=2, **options)
    for name, param in params.items():
        np.testing.assert_array_equal(param, before[name])


# The torch reference


def as_tensors(dtype):
    x, grad_y, params = problem()
    leaves = [torch.tensor(array, dtype=dtype, requires_grad=True) for array in (x, *params.values())]
    return leaves, torch.tensor(grad_y, dtype=dtype)


@every_activation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_torch_backward_equals_autograd_for_every_subset(activation, dtype):
    leaves, grad_y = as_tensors(dtype)
    expected_y = torch_reference.two_layer(*leaves, activation)
    expected = torch.autograd.grad(expected_y, leaves, grad_y)
    x, w1, _, w2, _ = leaves
    with torch.no_grad():
        y, saved = torch_reference.forward_saved(*leaves, activation)
        torch.testing.assert_close(y, expected_y.detach())
        assert saved.shape == (6, 4)
        for needs in itertools.product([False, True], repeat=5):
            gradients = torch_reference.backward(grad_y, x, w1, w2, saved, activation, needs)
            torch.testing.assert_close(gradients, list(itertools.compress(expected, needs)))


@every_activation
def test_torch_backward_equals_the_numpy_reference(activation):
    leaves, grad_y = as_tensors(torch.float64)
    _, y, params = problem()
    with torch.no_grad():
        _, saved = torch_reference.forward_saved(*leaves, activation)
        x, w1, _, w2, _ = leaves
        gradients = torch_reference.backward(grad_y, x, w1, w2, saved, activation, [True] * 5)
    z1 = reference.forward(x.numpy(force=True), **params, activation=activation)[1]
    expected = reference.backward(y, x.numpy(force=True), params["w1"], params["w2"], z1, activation)
    for name, gradient in zip(["x", *params], gradients, strict=True):
        np.testing.assert_allclose(gradient.numpy(), expected[name], rtol=1e-12, atol=1e-14, err_msg=name)


@every_activation
def test_torch_backward_is_differentiable(activation):
    leaves, grad_y = as_tensors(torch.float64)

    def gradients(grad_y, *leaves):
        _, saved = torch_reference.forward_saved(*leaves, activation)
        x, w1, _, w2, _ = leaves
        return tuple(torch_reference.backward(grad_y, x, w1, w2, saved, activation, [True] * 5))

    # Against central differences; the gradients are linear in grad_y, so it takes part too.
    assert torch.autograd.gradcheck(gradients, (grad_y.requires_grad_(), *leaves))


def test_torch_backward_of_an_empty_batch_gives_zeros():
    leaves, _ = as_tensors(torch.float64)
    x, w1, b1, w2, b2 = (leaf.detach() for leaf in leaves)
    y, saved = torch_reference.forward_saved(x[:0], w1, b1, w2, b2, "relu")
    gradients = torch_reference.backward(torch.empty_like(y), x[:0], w1, w2, saved, "relu", [True] * 5)
    for gradient, leaf in zip(gradients, [x[:0], w1, b1, w2, b2], strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(leaf))
