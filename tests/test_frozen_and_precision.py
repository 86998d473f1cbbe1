"""Parameters that stay put, and products of bfloat16 factors."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from cases import relative_error
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
    weights,
)

from twolayer import Trainer, fit

X, Y = make_data()
PARAMETERS = ("0.weight", "0.bias", "2.weight", "2.bias")
SUBSETS = [subset for count in (1, 2, 3) for subset in itertools.combinations(PARAMETERS, count)]
every_subset = pytest.mark.parametrize("frozen", SUBSETS, ids=" ".join)


def freeze(net, frozen):
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return net


def trained_parameters(net):
    return nn.ParameterList([parameter for parameter in net.parameters() if parameter.requires_grad])


# Frozen parameters


@every_subset
@pytest.mark.parametrize("rule", ["dampening", "adam", "rmsprop centered"])
def test_frozen_parameters_stay_put_and_the_others_follow_torch(rule, frozen):
    net, plain = freeze(make_net(), frozen), freeze(make_net().to_sequential(), frozen)
    start = weights(net)
    versions = {name: parameter._version for name, parameter in net.named_parameters()}
    fit(net, X, Y, batch_size=8, epochs=3, clip_norm=0.5, **RULES[rule])  # the norm is of the trained ones
    train_with_torch(
        plain,
        X,
        lambda z, rows: nn.functional.cross_entropy(z, Y[rows]),
        torch_optimizer(trained_parameters(plain), RULES[rule]),
        before_update=lambda: nn.utils.clip_grad_norm_(trained_parameters(plain), 0.5),
    )
    assert_near(net, plain, 1e-11)
    for name, parameter in net.named_parameters():
        assert parameter.equal(start[name]) == (name in frozen), name
        assert (parameter._version == versions[name]) == (name in frozen), name


@every_subset
def test_penalties_count_frozen_weights_in_the_loss_and_move_only_the_others(frozen):
    def penalised(net, z, rows):
        penalty = sum(0.01 * w.abs().sum() + 0.01 * w.square().sum() for w in (net[0].weight, net[2].weight))
        return nn.functional.cross_entropy(z, Y[rows]) + penalty

    net, plain = freeze(make_net(), frozen), freeze(make_net().to_sequential(), frozen)
    history = fit(net, X, Y, batch_size=8, epochs=3, lr=0.1, l1=0.01, l2=0.02)
    losses = train_with_torch(
        plain, X, lambda z, rows: penalised(plain, z, rows), torch.optim.SGD(trained_parameters(plain), 0.1)
    )
    assert_near(net, plain)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)


@every_subset
def test_a_frozen_parameter_has_no_state_and_a_run_goes_on_without_it(frozen):
    options = {"optimizer": "adam", "batch_size": 8, "dropout": 0.2}
    net, expected = freeze(make_net(), frozen), freeze(make_net(), frozen)
    first = Trainer(net, **options)
    first.epoch(X, Y)
    state = first.state_dict()
    short = dict(zip(PARAMETERS, ("w1", "b1", "w2", "b2"), strict=True))
    assert set(state["state"]["exp_avg"]) == {short[name] for name in PARAMETERS if name not in frozen}
    second = Trainer(net, **options)
    second.load_state_dict(state)
    second.epoch(X, Y)
    whole = Trainer(expected, **options)
    for _ in range(2):
        whole.epoch(X, Y)
    assert_same_bits(net, expected)


def test_a_state_of_a_frozen_parameter_is_refused():
    state = Trainer(make_net(), optimizer="adam").state_dict()
    with pytest.raises(ValueError, match=r"state's exp_avg of w1 must have shape None; got \(20, 9\)"):
        Trainer(freeze(make_net(), ["0.weight"]), optimizer="adam").load_state_dict(state)


def test_freezing_on_the_way_makes_another_net():
    net = make_net()
    trainer = Trainer(net)
    net[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"net must stay what .*; it is now .* w1 \(frozen\) b1 w2 b2"):
        trainer.step(X, Y)


def test_with_all_frozen_only_the_loss_is_found():
    net = freeze(make_net(), PARAMETERS)
    history = fit(net, X, Y, epochs=2, batch_size=ROWS, optimizer="adam")
    assert_same_bits(net, make_net())
    assert history.loss == pytest.approx([nn.functional.cross_entropy(net(X), Y).item()] * 2, rel=1e-13)


def test_a_frozen_parameter_may_be_read_only():
    memory = np.frombuffer(make_net()[0].weight.detach().numpy().tobytes()).reshape(20, 9)
    with pytest.warns(UserWarning, match="not writable"):
        tensor = torch.from_numpy(memory)
    net, expected = make_net(), freeze(make_net(), ["0.weight"])
    net[0].weight = nn.Parameter(tensor, requires_grad=False)
    fit(net, X, Y)
    fit(expected, X, Y)
    assert_same_bits(net, expected)


def fastest(calls, repeats=7):
    """The least seconds of each call, taken in turns."""
    seconds = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in seconds]


@pytest.mark.alone
def test_a_frozen_first_layer_costs_no_time():
    x, y = make_data(rows=2000, sizes=(784, 100, 10), dtype=torch.float32)
    whole, part = (make_net(sizes=(784, 100, 10), dtype=torch.float32) for _ in range(2))
    trainers = [Trainer(whole, optimizer="adam"), Trainer(freeze(part, PARAMETERS[:2]), optimizer="adam")]
    all_trained, frozen = fastest([lambda t=t: t.epoch(x, y) for t in trainers])
    assert frozen < 0.9 * all_trained  # neither the gradient of w1 nor its update is computed


# bfloat16

X32, Y32 = make_data(dtype=torch.float32)
LARGE = (100, 64, 10)
LARGE_X, LARGE_Y = make_data(rows=500, sizes=LARGE, dtype=torch.float32)


def bfloat16_run(threads=None, **options):
    net = make_net(dtype=torch.float32, sizes=LARGE)
    history = fit(net, LARGE_X, LARGE_Y, precision="bfloat16", epochs=3, threads=threads, **options)
    return net, history


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam", "rmsprop"])
def test_bfloat16_is_close_to_float32(rule):
    net, history = bfloat16_run(**RULES[rule])
    exact = make_net(dtype=torch.float32, sizes=LARGE)
    start = weights(exact)
    losses = fit(exact, LARGE_X, LARGE_Y, epochs=3, **RULES[rule]).loss
    np.testing.assert_allclose(history.loss, losses, rtol=2e-2)
    assert history.loss != losses
    for (name, mine), theirs in zip(net.named_parameters(), exact.parameters(), strict=True):
        moved, expected = (p.detach().numpy() - start[name].numpy() for p in (mine, theirs))
        assert 0 < relative_error(moved, expected) < 0.2, name
        assert not mine.equal(mine.bfloat16().float())  # the weights themselves are kept in float32


def test_bfloat16_learns_what_steps_below_its_resolution_teach():
    """A weight near 1 in bfloat16 would not move by less than 1/256."""
    net = make_net("identity", dtype=torch.float32)
    with torch.no_grad():
        net[2].weight.fill_(1.0)
    fit(net, X32, Y32, precision="bfloat16", lr=1e-4, epochs=5, batch_size=ROWS)
    moved = (net[2].weight - 1).abs()
    assert 0 < moved.max() < 1 / 256


def test_bfloat16_rounds_the_factors_and_adds_up_in_float32():
    """One step by torch in float32, its factors rounded to bfloat16 by hand."""

    def rounded(t):
        return t.bfloat16().float()

    net, plain = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    Trainer(net, precision="bfloat16", lr=0.1).step(X32, Y32)
    w1, b1, w2, b2 = plain.parameters()
    with torch.no_grad():
        h = rounded(torch.tanh(rounded(X32) @ rounded(w1).T + b1))
        z = h @ rounded(w2).T + b2
        grad_z = (z.softmax(dim=1) - nn.functional.one_hot(Y32, 5)) / ROWS
        grad_h = rounded(grad_z) @ rounded(w2)
        grad_b1 = rounded(grad_h * (1 - h**2)).sum(dim=0)
        b1 -= 0.1 * grad_b1
        w2 -= 0.1 * rounded(grad_z).T @ h
    torch.testing.assert_close(net[2].weight, w2, rtol=0, atol=1e-4)
    torch.testing.assert_close(net[0].bias, b1, rtol=0, atol=1e-4)
    assert_changed(net, make_net(dtype=torch.float32))


def test_bfloat16_gives_the_same_bits_each_time_and_at_every_number_of_threads():
    expected, history = bfloat16_run(dropout=0.2, optimizer="adam")
    for threads in (1, 2, 3, 8, None):
        net, again = bfloat16_run(threads, dropout=0.2, optimizer="adam")
        assert_same_bits(net, expected)
        assert again.loss == history.loss


def test_bfloat16_is_evaluated_in_bfloat16():
    net, _ = bfloat16_run()
    exact = Trainer(net).evaluate(LARGE_X, LARGE_Y)["loss"]
    rounded = Trainer(net, precision="bfloat16").evaluate(LARGE_X, LARGE_Y)["loss"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-2)


def test_a_bfloat16_run_goes_on():
    options = {"optimizer": "adam", "batch_size": 8, "precision": "bfloat16"}
    net, expected = make_net(dtype=torch.float32), make_net(dtype=torch.float32)
    first, second, whole = Trainer(net, **options), Trainer(net, **options), Trainer(expected, **options)
    first.epoch(X32, Y32)
    second.load_state_dict(first.state_dict())
    second.epoch(X32, Y32)
    for _ in range(2):
        whole.epoch(X32, Y32)
    assert_same_bits(net, expected)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float64, "precision 'bfloat16' needs a float32 net, whose weights it keeps; the net is float64"),
        (torch.bfloat16, "net's w1 must be float32 or float64 to be trained by fit; it is torch.bfloat16"),
        (torch.float16, "net's w1 must be float32 or float64 to be trained by fit; it is torch.float16"),
    ],
)
def test_bfloat16_of_other_nets_is_refused(dtype, message):
    net = make_net().to(dtype)
    with pytest.raises(ValueError, match=message):
        fit(net, X, Y, precision="bfloat16")
    assert_same_bits(net, make_net().to(dtype))
