"""The references against what they do not depend on: central differences, autograd, torch.optim, literal loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from twolayer import registry
from twolayer.reference import numpy as reference
from twolayer.reference import torch as torch_reference

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


@every_loss
def test_loss_and_gradient_equal_torch_and_central_differences(loss):
    value, gradient = reference.LOSSES[loss]
    _, y, _ = problem(loss)
    z = np.random.default_rng(1).standard_normal((6, 3))
    z_torch = torch.tensor(z, requires_grad=True)
    expected = torch_reference.LOSSES[loss](z_torch, torch.tensor(y))
    (expected_gradient,) = torch.autograd.grad(expected, z_torch)
    assert value(z, y) == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(gradient(z, y), expected_gradient.numpy(), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradient(z, y), central_differences(lambda: value(z, y), z), rtol=1e-6, atol=1e-8)


def test_cross_entropy_survives_huge_outputs():
    z, labels = np.array([[1e300, 0.0], [0.0, -1e300]]), np.array([0, 0])
    with np.errstate(over="raise", invalid="raise"):
        assert reference.cross_entropy(z, labels) == 0
        np.testing.assert_array_equal(reference.cross_entropy_gradient(z, labels), np.zeros((2, 2)))


@pytest.mark.parametrize("loss", ["mse", "mse_sum"])
def test_squared_losses_broadcast_one_target_over_the_batch(loss):
    value, gradient = reference.LOSSES[loss]
    z, target = np.random.default_rng(2).standard_normal((4, 3)), np.array([1.0, -2.0, 0.5])
    whole = np.tile(target, (4, 1))
    assert value(z, target) == value(z, whole)
    np.testing.assert_array_equal(gradient(z, target), gradient(z, whole))
    one = torch_reference.LOSSES[loss](torch.tensor(z), torch.tensor(target)).item()
    assert one == pytest.approx(value(z, whole), rel=1e-13)


# Optimisers


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.5, "nesterov": True},
    ],
    ids=str,
)
def test_sgd_equals_torch_over_20_steps(options, weight_decay):
    rng = np.random.default_rng(3)
    param, state = rng.standard_normal((4, 3)), {}
    expected = torch.nn.Parameter(torch.tensor(param))
    optimizer = torch.optim.SGD([expected], lr=0.1, weight_decay=weight_decay, **options)
    for _ in range(20):
        grad = rng.standard_normal(param.shape)
        kept = grad.copy()
        reference.sgd(param, grad, state, lr=0.1, weight_decay=weight_decay, **options)
        np.testing.assert_array_equal(grad, kept)
        expected.grad = torch.tensor(grad)
        optimizer.step()
        np.testing.assert_allclose(param, expected.detach().numpy(), rtol=1e-12, atol=1e-14)


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

    def loss():
        return reference.cross_entropy(reference.forward(x, **params, activation=activation)[0], labels)

    z, z1, _ = reference.forward(x, **params, activation=activation)
    grad_z = reference.cross_entropy_gradient(z, labels)
    gradients = reference.backward(grad_z, x, params["w1"], params["w2"], z1, activation)
    for name, array in {"x": x, **params}.items():
        np.testing.assert_allclose(
            gradients[name], central_differences(loss, array), rtol=1e-6, atol=1e-8, err_msg=name
        )


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
    assert reference._splitmix64(1234567, 5).tolist() == published


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


def torch_train(params, x, y, *, activation, loss, batch_size, epochs, order, **sgd_options):
    """Autograd and torch.optim.SGD over the batches in ``order(epoch)``; returns the loss of every step."""
    leaves = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    optimizer = torch.optim.SGD(leaves.values(), **sgd_options)
    x, y = torch.tensor(x), torch.tensor(y)
    losses = []
    for epoch in range(epochs):
        for rows in torch.tensor(order(epoch)).split(batch_size):
            output = torch_reference.two_layer(x[rows], **leaves, activation=activation)
            batch_loss = torch_reference.LOSSES[loss](output, y[rows])
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            losses.append(batch_loss.item())
    return losses, {name: leaf.detach().numpy() for name, leaf in leaves.items()}


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
