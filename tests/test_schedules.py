"""Learning-rate schedules: each against torch.optim.lr_scheduler, by its rates and by a whole run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from training_runs import (
    ROWS,
    assert_changed,
    assert_near,
    assert_same_bits,
    make_data,
    make_net,
    one_torch_thread,  # noqa: F401
    torch_optimizer,
    train_with_torch,
)

from twolayer import Trainer, fit
from twolayer.training.schedules import CosineDecay, ExponentialDecay, OneCycle, StepDecay, WarmUp

LR, EPOCHS, STEPS_PER_EPOCH = 0.2, 7, 5
STEPS = EPOCHS * STEPS_PER_EPOCH


def times(*factors):
    """The LambdaLR whose factor is the product of functions of the step."""
    return lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: float(np.prod([f(step) for f in factors])))


# name: (ours, torch's, whether torch's is stepped after each step rather than after each epoch)
SCHEDULES = {
    "step": (StepDecay(every=2, gamma=0.5), lambda o: lr_scheduler.StepLR(o, 2, 0.5), False),
    "step, default gamma": (StepDecay(3), lambda o: lr_scheduler.StepLR(o, 3), False),
    "exponential": (ExponentialDecay(0.8), lambda o: lr_scheduler.ExponentialLR(o, 0.8), False),
    "cosine": (CosineDecay(EPOCHS), lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS), False),
    "cosine to min_lr": (CosineDecay(9, min_lr=0.05), lambda o: lr_scheduler.CosineAnnealingLR(o, 9, 0.05), False),
    "cosine per step": (
        CosineDecay(EPOCHS, min_lr=0.01, per_step=True),
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.01),
        True,
    ),
    "one-cycle": (
        OneCycle(max_lr=0.3, epochs=EPOCHS),
        lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=STEPS, cycle_momentum=False),
        True,
    ),
    "one-cycle, other shape": (
        OneCycle(max_lr=0.3, epochs=EPOCHS, pct_start=0.6, div_factor=5.0, final_div_factor=20.0),
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.3, total_steps=STEPS, pct_start=0.6, div_factor=5.0, final_div_factor=20.0, cycle_momentum=False
        ),
        True,
    ),
    "warm-up": (WarmUp(12, start_factor=0.1), lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 12), True),
    "warm-up from zero": (WarmUp(12), times(lambda step: min(step / 12, 1)), True),
    "warm-up, then a function": (
        WarmUp(12, start_factor=0.1, then=lambda epoch: LR / (1 + epoch)),
        times(lambda step: 0.1 + 0.9 * min(step / 12, 1), lambda step: 1 / (1 + step // STEPS_PER_EPOCH)),
        True,
    ),
    "warm-up, then cosine": (
        WarmUp(3, then=CosineDecay(EPOCHS)),
        times(
            lambda step: min(step / 3, 1), lambda step: 0.5 + 0.5 * np.cos(np.pi * (step // STEPS_PER_EPOCH) / EPOCHS)
        ),
        True,
    ),
    "function": (lambda epoch: LR / (1 + epoch), lambda o: lr_scheduler.LambdaLR(o, lambda e: 1 / (1 + e)), False),
    "constant": (None, lambda o: lr_scheduler.ConstantLR(o, 1.0), False),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def run_of_torch(net, x, y, rule, scheduler_of, per_step, epochs=EPOCHS):
    """Train with torch.optim and the scheduler; return the learning rate of each step."""
    optimizer = torch_optimizer(net, rule)
    scheduler = scheduler_of(optimizer)
    rates = []
    step = scheduler.step if per_step else None

    def after_step():
        if step is not None and len(rates) < STEPS:  # OneCycleLR refuses to go past its end
            step()

    train_with_torch(
        net,
        x,
        lambda z, rows: nn.functional.cross_entropy(z, y[rows]),
        optimizer,
        epochs=epochs,
        before_update=lambda: rates.append(optimizer.param_groups[0]["lr"]),
        after_step=after_step,
        after_epoch=None if per_step else scheduler.step,
    )
    return rates


@every_schedule
@pytest.mark.parametrize(
    "rule", [{"optimizer": "sgd", "lr": LR, "momentum": 0.5}, {"optimizer": "adam", "lr": LR}], ids=["sgd", "adam"]
)
def test_a_run_is_torchs(name, rule):
    schedule, scheduler_of, per_step = SCHEDULES[name]
    x, y = make_data()
    net, plain = make_net(), make_net().to_sequential()
    fit(net, x, y, **rule, batch_size=8, epochs=EPOCHS, lr_schedule=schedule)
    run_of_torch(plain, x, y, rule, scheduler_of, per_step)
    assert_near(net, plain, 1e-11)


@pytest.mark.parametrize("name", [name for name, (schedule, *_) in SCHEDULES.items() if hasattr(schedule, "rates")])
def test_rates_are_torchs(name):
    schedule, scheduler_of, per_step = SCHEDULES[name]
    x, y = make_data()
    expected = run_of_torch(make_net().to_sequential(), x, y, {"optimizer": "sgd", "lr": LR}, scheduler_of, per_step)
    rates = [schedule.rates(LR, epoch, 0, STEPS_PER_EPOCH, STEPS_PER_EPOCH) for epoch in range(EPOCHS)]
    np.testing.assert_allclose(np.concatenate(rates), expected, rtol=1e-12)
    assert len(set(expected)) > 1
    for epoch in (0, 2, EPOCHS - 1):  # an epoch that was interrupted is taken up with the rates of its later steps
        for first in range(STEPS_PER_EPOCH):
            rest = schedule.rates(LR, epoch, first, STEPS_PER_EPOCH - first, STEPS_PER_EPOCH)
            np.testing.assert_array_equal(rest, rates[epoch][first:])


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (CosineDecay(3, min_lr=0.05), 0.05),
        (CosineDecay(3, min_lr=0.05, per_step=True), 0.05),
        (OneCycle(max_lr=0.3, epochs=3, div_factor=10.0, final_div_factor=5.0), 0.3 / 50),
        (WarmUp(4), LR),
    ],
    ids=str,
)
def test_past_its_end_a_schedule_stays_where_it_ended(schedule, last):
    np.testing.assert_allclose(schedule.rates(LR, 3, 0, 5, 5), np.full(5, last), rtol=1e-12)
    np.testing.assert_allclose(schedule.rates(LR, 1000, 0, 5, 5), np.full(5, last), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_over_next_to_no_steps_stays_finite_and_in_its_range(steps):
    rates = OneCycle(max_lr=0.3, epochs=1).rates(LR, 0, 0, steps, steps)
    assert ((rates > 0) & (rates <= 0.3)).all()


def test_a_function_is_called_once_per_epoch_with_the_epoch():
    epochs = []
    x, y = make_data()
    fit(make_net(), x, y, batch_size=8, epochs=4, lr_schedule=lambda epoch: epochs.append(epoch) or 0.1)
    assert epochs == [0, 1, 2, 3]


def test_a_rate_of_zero_stands_still():
    x, y = make_data()
    net = make_net()
    fit(net, x, y, epochs=2, lr_schedule=lambda epoch: 0)
    assert_same_bits(net, make_net())


@pytest.mark.parametrize("rate", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25)])
def test_a_function_may_return_any_kind_of_number(rate):
    x, y = make_data()
    net, expected = make_net(), make_net()
    fit(net, x, y, lr_schedule=lambda epoch: rate)
    fit(expected, x, y, lr=0.25)
    assert_same_bits(net, expected)


def test_epochs_of_a_trainer_follow_the_schedule():
    x, y = make_data()
    options = {"lr": LR, "batch_size": 8, "lr_schedule": WarmUp(12, then=StepDecay(2, 0.5))}
    net, expected = make_net(), make_net()
    trainer = Trainer(net, **options)
    for _ in range(5):
        trainer.epoch(x, y)
    fit(expected, x, y, epochs=5, **options)
    assert_same_bits(net, expected)


@pytest.mark.parametrize(
    ("schedule", "scheduler_of"),
    [
        (WarmUp(4), times(lambda step: min(step / 4, 1))),
        (StepDecay(2, 0.5), lambda o: lr_scheduler.StepLR(o, 2, 0.5)),
        (CosineDecay(6), lambda o: lr_scheduler.CosineAnnealingLR(o, 6)),
        (OneCycle(0.3, epochs=6), lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=6, cycle_momentum=False)),
        (lambda step: LR / (1 + step), lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step))),
    ],
    ids=["warm-up", "step", "cosine", "one-cycle", "function"],
)
def test_to_single_steps_each_is_an_epoch(schedule, scheduler_of):
    x, y = make_data()
    net, plain = make_net(), make_net().to_sequential()
    trainer = Trainer(net, lr=LR, lr_schedule=schedule)
    for _ in range(6):
        trainer.step(x, y)
    optimizer = torch_optimizer(plain, {"optimizer": "sgd", "lr": LR})
    scheduler = scheduler_of(optimizer)
    for _ in range(6):
        train_with_torch(
            plain, x, lambda z, rows: nn.functional.cross_entropy(z, y[rows]), optimizer, batch_size=ROWS, epochs=1
        )
        scheduler.step()
    assert_near(net, plain)


@pytest.mark.parametrize("sized", [True, False], ids=["of known length", "of unknown length"])
def test_batches_from_an_iterable_follow_the_schedule(sized):
    x, y = make_data()
    batches = list(zip(x.split(8), y.split(8), strict=True))

    class Stream:
        def __iter__(self):
            return iter(batches)

    options = {"lr": LR, "epochs": 3, "lr_schedule": WarmUp(12)}
    net, expected = make_net(), make_net()
    fit(net, batches if sized else Stream(), **options)
    fit(expected, x, y, batch_size=8, shuffle=False, **options)
    assert_same_bits(net, expected)


def test_a_custom_schedule_is_used():
    class Alternating:
        def rates(self, lr, epoch, first, count, steps_per_epoch):
            return np.where((first + np.arange(count)) % 2, 0.0, lr)

    x, y = make_data()
    net, expected = make_net(), make_net()
    fit(net, x, y, lr=LR, batch_size=20, shuffle=False, lr_schedule=Alternating())
    fit(expected, x[:20], y[:20], lr=LR, batch_size=20, shuffle=False)
    assert_same_bits(net, expected)
    assert_changed(net, make_net())


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StepDecay(0), ValueError, "every must be at least 1 and below .*; got 0"),
        (lambda: StepDecay(2.5), TypeError, "every must be an integer; got float"),
        (lambda: StepDecay(2, -0.1), ValueError, "gamma must be finite and at least 0; got -0.1"),
        (lambda: ExponentialDecay(float("nan")), ValueError, "gamma must be finite and at least 0; got nan"),
        (lambda: CosineDecay(0), ValueError, "epochs must be at least 1 and below .*; got 0"),
        (lambda: CosineDecay(3, min_lr=-1), ValueError, "min_lr must be finite and at least 0; got -1"),
        (lambda: CosineDecay(3, per_step=1), TypeError, "per_step must be True or False; got 1"),
        (lambda: OneCycle(float("inf"), 3), ValueError, "max_lr must be finite and at least 0; got inf"),
        (lambda: OneCycle(0.1, 0), ValueError, "epochs must be at least 1 and below .*; got 0"),
        (lambda: OneCycle(0.1, 3, pct_start=1.5), ValueError, "pct_start must be finite and .* at most 1; got 1.5"),
        (lambda: OneCycle(0.1, 3, div_factor=0), ValueError, "div_factor must be above 0; got 0"),
        (lambda: OneCycle(0.1, 3, final_div_factor=0), ValueError, "final_div_factor must be above 0; got 0"),
        (lambda: WarmUp(0), ValueError, "steps must be at least 1 and below .*; got 0"),
        (lambda: WarmUp(3, start_factor=2), ValueError, "start_factor must be finite and .* at most 1; got 2"),
        (
            lambda: WarmUp(3, then="cosine"),
            TypeError,
            "then must be a schedule, a function epoch -> lr, or None; .*str",
        ),
    ],
)
def test_wrong_schedules_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (float("nan"), ValueError, r"lr_schedule\(2\) must be finite and at least 0; got nan"),
        (-0.1, ValueError, r"lr_schedule\(2\) must be finite and at least 0; got -0.1"),
        ("0.1", TypeError, r"lr_schedule\(2\) must be a number; got str"),
        (None, TypeError, r"lr_schedule\(2\) must be a number; got NoneType"),
    ],
)
def test_a_function_that_goes_wrong_leaves_the_net_at_the_epoch_before(rate, error, message):
    x, y = make_data()
    net, expected = make_net(), make_net()
    with pytest.raises(error, match=message):
        fit(net, x, y, epochs=5, lr_schedule=lambda epoch: rate if epoch == 2 else 0.1)
    fit(expected, x, y, epochs=2, lr=0.1)
    assert_same_bits(net, expected)
