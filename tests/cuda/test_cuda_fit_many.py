"""``fit_many`` on a device: what separate calls of ``fit`` give, all nets at once."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from device_nets import OPTIONS, assert_no_thread_is_left, device_net, press_ctrl_c, to
from training_runs import (
    ROWS,
    assert_same_bits,
    make_data,
    one_torch_thread,  # noqa: F401
)

from twolayer import (
    EarlyStopping,
    NonFiniteLossError,
    TrainingInterrupted,
    fit,
    fit_many,
)

# fit_many


def make_nets(device, count=4, **options):
    return [device_net(device, seed=seed, **options) for seed in range(count)]


def one_by_one(nets, x, y, **options):
    return [
        fit(net, x, y, **{n: value[i] if isinstance(value, list) else value for n, value in options.items()})
        for i, net in enumerate(nets)
    ]


def assert_same_histories(histories, expected):
    for one, other in zip(histories, expected, strict=True):
        assert {**vars(one), "seconds": 0} == {**vars(other), "seconds": 0}


MANY = {
    "a sweep": {"lr": [0.001, 0.01, 0.1, 0.3], "seed": [3, 1, 4, 1]},
    "all different": {
        "optimizer": ["sgd", "adam", "rmsprop", "adagrad"],
        "batch_size": [8, 16, 7, 37],
        "epochs": [1, 2, 3, 0],
        "dropout": [0.0, 0.5, 0.2, 0.0],
    },
    "a fraction and the best": {"validation": 0.2, "early_stopping": EarlyStopping(1), "lr": [0.1, 1.0, 3.0, 0.3]},
}


@pytest.mark.parametrize("options", MANY.values(), ids=MANY)
def test_many_nets_end_as_separate_fits_do(options, device):
    x, y = to(device, *make_data())
    nets, expected = make_nets(device), make_nets(device)
    options = OPTIONS | options
    histories = fit_many(nets, x, y, **options)
    assert_same_histories(histories, one_by_one(expected, x, y, **options))
    for net, other in zip(nets, expected, strict=True):
        assert_same_bits(net, other)
    assert_no_thread_is_left()


def test_nets_on_a_device_train_all_at_once_whatever_the_threads(device):
    together = threading.Barrier(6, timeout=60)

    def schedule(epoch):
        together.wait()  # it is called by the worker of each net
        return 0.1

    fit_many(make_nets(device, 6), *to(device, *make_data()), threads=1, epochs=2, batch_size=8, lr_schedule=schedule)
    assert_no_thread_is_left()


def test_a_callback_of_many_is_called_by_the_caller(device):
    nets, seen = make_nets(device), {}

    def callback(index, epoch, history):
        assert threading.current_thread() is threading.main_thread()
        seen[index, epoch] = copy.deepcopy(nets[index])
        return index == 1

    x, y = to(device, *make_data())
    histories = fit_many(nets, x, y, **OPTIONS, callback=callback)
    assert [len(history.loss) for history in histories] == [3, 1, 3, 3]
    for index, net in enumerate(make_nets(device)):
        fit(
            net,
            x,
            y,
            **OPTIONS,
            callback=lambda epoch, _, i=index, n=net: assert_same_bits(n, seen[i, epoch]) or i == 1,
        )


def test_a_loss_that_is_not_finite_ends_that_net_only(device):
    nets, expected = make_nets(device), make_nets(device)
    x, y = to(device, *make_data("mse"))
    with pytest.raises(NonFiniteLossError, match=r"of nets\[1\]; try a smaller lr") as caught:
        fit_many(nets, x, y, loss="mse_sum", lr=[1e-4, 1e200, 1e-4, 1e-4], epochs=3, batch_size=8)
    assert [len(history.loss) == 3 for history in caught.value.histories] == [True, False, True, True]
    fit(expected[2], x, y, loss="mse_sum", lr=1e-4, epochs=3, batch_size=8)
    assert_same_bits(nets[2], expected[2])


def test_ctrl_c_ends_all(device):
    nets, expected, pressed = make_nets(device), make_nets(device), []
    x, y = to(device, *make_data())
    press_ctrl_c(0.3, pressed)
    with pytest.raises(TrainingInterrupted) as caught:
        fit_many(nets, x, y, epochs=10**6, batch_size=ROWS, lr=1e-4)
    assert all(history.steps > 0 for history in caught.value.histories)
    for net, other, history in zip(nets, expected, caught.value.histories, strict=True):
        fit(other, x, y, epochs=history.steps, batch_size=ROWS, lr=1e-4)
        assert_same_bits(net, other)


def test_shared_memory_is_refused(device):
    nets = make_nets(device)
    nets[2][0].weight = nets[0][0].weight
    with pytest.raises(
        ValueError, match=r"nets must not share memory that is trained; nets\[0\]'s w1 and nets\[2\]'s w1"
    ):
        fit_many(nets, *to(device, *make_data()))


def test_another_stream_is_the_workers_too(gpu):
    x, y = to(gpu, *make_data(rows=4096))
    expected = make_nets(gpu)
    one_by_one(expected, x, y, **OPTIONS)
    nets = make_nets(gpu)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10**8)  # what follows on this stream is not there for a while
        with torch.no_grad():
            late = x + 0
        fit_many(nets, late, y, **OPTIONS, callback=lambda index, epoch, history: nets[index](late).sum().item() == 0)
    for net, other in zip(nets, expected, strict=True):
        assert_same_bits(net, other)
