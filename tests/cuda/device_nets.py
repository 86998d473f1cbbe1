"""Nets on a device, their twins in main memory, and how the tests of training compare them."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from cases import relative_error
from training_runs import (
    Tensor,
    make_net,
    one_torch_thread,  # noqa: F401
)

from twolayer import (
    NumpyNet,
    fit,
)

BOUNDS = {torch.float32: 2e-5, torch.float64: 1e-12}  # of norms, after a few steps
every_dtype = pytest.mark.parametrize("dtype", BOUNDS, ids=str)
OPTIONS = {"batch_size": 8, "epochs": 3, "lr": 0.05}
NAMES = ("w1", "b1", "w2", "b2")


def to(device, *tensors):
    return [tensor.to(device) for tensor in tensors]


def device_net(device, *arguments, **options):
    return make_net(*arguments, **options).to(device)


def twin(net, activation="tanh"):
    """The net in main memory."""
    arrays = [parameter.detach().cpu().numpy().copy() for parameter in net.parameters()]
    hidden, inputs = arrays[0].shape
    bias = len(arrays) == 4
    made = NumpyNet(inputs, hidden, arrays[-2 if bias else -1].shape[0], activation, bias, dtype=arrays[0].dtype)
    for name, array in zip(NAMES if bias else ("w1", "w2"), arrays, strict=True):
        setattr(made, name, array)
    return made


def our_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("twolayer")]


def assert_no_thread_is_left():
    """An order that nobody waits for may still be being made."""
    end = time.perf_counter() + 10
    while our_threads() and time.perf_counter() < end:
        time.sleep(0.001)
    assert our_threads() == []


def on_cpu(value):
    return value.cpu().numpy() if isinstance(value, Tensor) and value.dtype is not torch.bfloat16 else value


def assert_net_is(net, twin, bound):
    for parameter, (name, array) in zip(net.parameters(), twin.parameters().items(), strict=True):
        assert relative_error(parameter.detach().cpu().numpy(), array) <= bound, name


def assert_fit_is_the_cpus(device, x, y, activation="tanh", dtype=torch.float64, bias=True, **options):
    """Train on the device, on data that are there, and on the CPU; return the device's net and history."""
    options = OPTIONS | options
    net = device_net(device, activation, dtype, bias=bias)
    expected = twin(net, activation)
    history = fit(net, x, y, **options)
    of_cpu = fit(expected, x.cpu(), y.cpu(), **{name: on_cpu(value) for name, value in options.items()})
    assert_net_is(net, expected, BOUNDS[dtype])
    for name in ("loss", "last_batch_loss", "val_loss"):
        np.testing.assert_allclose(getattr(history, name), getattr(of_cpu, name), rtol=20 * BOUNDS[dtype])
    assert (history.steps, history.val_accuracy) == (of_cpu.steps, of_cpu.val_accuracy)
    assert history.path in ("cuda cluster", "cuda graph")
    return net, history


def press_ctrl_c(after, pressed):
    def press():
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(after, press).start()
