"""``fit`` on CUDA tensors, and on emulated kernels, against the CPU's engine: its results, and what data it takes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from device_nets import (
    NAMES,
    OPTIONS,
    assert_fit_is_the_cpus,
    assert_net_is,
    device_net,
    every_dtype,
    to,
    twin,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_runs import (
    LOSSES,
    ROWS,
    RULES,
    SIZES,
    assert_changed,
    assert_near,
    assert_same_bits,
    make_data,
    one_torch_thread,  # noqa: F401
    train_with_torch,
)

from twolayer import (
    Trainer,
    fit,
)
from twolayer.training.schedules import OneCycle

# The CPU's results


@every_dtype
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_optimizer(rule, dtype, device):
    net, _ = assert_fit_is_the_cpus(device, *to(device, *make_data(dtype=dtype)), dtype=dtype, **rule)
    assert_changed(net, device_net(device, dtype=dtype))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss, device):
    assert_fit_is_the_cpus(device, *to(device, *make_data(loss)), loss=loss, lr=1e-3)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu", "sigmoid", "sine"])
def test_activations(activation, device):
    assert_fit_is_the_cpus(device, *to(device, *make_data()), activation=activation, momentum=0.9)


OTHER_OPTIONS = {
    "penalties": {"l1": 0.01, "l2": 0.1},
    "clipping": {"clip_norm": 0.1},
    "dropout": {"dropout": 0.3, "seed": 5},
    "no shuffling": {"shuffle": False},
    "no short batch": {"drop_last": True},
    "one batch": {"batch_size": 100},
    "scaled": {"input_scale": 0.5, "input_shift": 0.1},
    "smooth labels": {"label_smoothing": 0.1},
    "schedule": {"lr_schedule": OneCycle(0.1, 3)},
    "a fraction": {"validation": 0.3},
}


@pytest.mark.parametrize("options", OTHER_OPTIONS.values(), ids=OTHER_OPTIONS)
def test_options(options, device):
    assert_fit_is_the_cpus(device, *to(device, *make_data()), **options)


def test_without_biases(device):
    assert_fit_is_the_cpus(device, *to(device, *make_data("mse")), bias=False, loss="mse")


def test_bfloat16_factors(device):
    x, y = to(device, *make_data(dtype=torch.float32))
    net = device_net(device, dtype=torch.float32)
    expected = twin(net)
    fit(net, x, y, precision="bfloat16", **OPTIONS)
    fit(expected, x.cpu(), y.cpu(), precision="bfloat16", **OPTIONS)
    assert_net_is(net, expected, 1e-2)
    other = device_net(device, dtype=torch.float32)
    fit(other, x, y, **OPTIONS)
    assert_changed(net, other)


def test_the_same_bits_on_every_run(device):
    x, y = to(device, *make_data(dtype=torch.float32))
    nets = [device_net(device, dtype=torch.float32) for _ in range(3)]
    for net in nets:
        fit(net, x, y, dropout=0.2, momentum=0.9, **OPTIONS)
        assert_same_bits(net, nets[0])


# Data


def uint8_pixels():
    return torch.randint(0, 256, (ROWS, SIZES[0]), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


FORMS = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "int32": lambda x: (4 * x).int(),
    "bool": lambda x: x > 0,
    "rows apart": lambda x: torch.cat([x, x], dim=1)[:, :9],
    "columns apart": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "not aligned": lambda x: torch.cat([x, x], dim=1)[:, 3:12],
    "one row for all": lambda x: x[:1].expand(ROWS, 9),
    "requires grad": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_inputs_may_come_in_every_form(form, device):
    x, y = make_data(dtype=torch.float32)
    x, y = to(device, form(x), y)
    net, expected = (device_net(device, dtype=torch.float32) for _ in range(2))
    fit(net, x, y, **OPTIONS)
    fit(expected, x.detach().float().contiguous(), y, **OPTIONS)
    assert_near(net.cpu(), expected.cpu(), 1e-6)


def test_bytes_are_scaled_as_they_are_read(device):
    x, y = to(device, uint8_pixels(), make_data()[1])
    assert_fit_is_the_cpus(device, x, y, input_scale=1 / 255, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_classes_may_be_of_every_integer_type(dtype, device):
    x, y = to(device, *make_data())
    net, expected = device_net(device), device_net(device)
    fit(net, x, y.to(dtype), **OPTIONS)
    fit(expected, x, y, **OPTIONS)
    assert_same_bits(net, expected)


def test_targets_may_be_distributions_or_one_row_for_all(device):
    x, _ = to(device, *make_data())
    assert_fit_is_the_cpus(device, x, torch.rand(ROWS, 5, dtype=torch.float64).softmax(1).to(device))
    assert_fit_is_the_cpus(device, x, torch.rand(5, dtype=torch.float64).to(device), loss="mse")


def test_weights_of_rows_and_classes_and_an_ignored_class(device):
    x, y = make_data()
    y[::5] = -100
    weight, class_weight = to(device, torch.rand(ROWS, dtype=torch.float64), torch.linspace(0.5, 2, 5))
    x, y = to(device, x, y)
    assert_fit_is_the_cpus(device, x, y, sample_weight=weight, class_weight=class_weight, penalty_per_row=True, l2=0.1)


def test_rows_of_the_ignored_class_count_neither_as_hits_nor_as_misses(device):
    x, y = make_data()
    y[::5] = 3
    x, y = to(device, x, y)
    options = {"ignore_index": 3, "validation": (x, y)}
    net = device_net(device)
    expected = twin(net)
    history = fit(net, x, y, **OPTIONS, **options)
    of_cpu = fit(expected, x.cpu(), y.cpu(), **OPTIONS, **options | {"validation": (x.cpu(), y.cpu())})
    assert history.val_accuracy == of_cpu.val_accuracy
    np.testing.assert_allclose(history.val_loss, of_cpu.val_loss, rtol=1e-11)
    fraction = fit(device_net(device), x, y, **OPTIONS, ignore_index=3, validation=0.5)
    of_cpu = fit(twin(device_net(device)), x.cpu(), y.cpu(), **OPTIONS, ignore_index=3, validation=0.5)
    assert fraction.val_accuracy == of_cpu.val_accuracy


def test_batches_of_a_loader_on_the_device(device):
    x, y = to(device, *make_data())
    net, expected = device_net(device), device_net(device)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    history = fit(net, loader, epochs=2, lr=0.05)
    fit(expected, x, y, epochs=2, lr=0.05, batch_size=8, shuffle=False)
    assert history.steps == 10
    assert history.path.startswith("cuda ")
    assert_near(net.cpu(), expected.cpu(), 1e-13)


@pytest.mark.parametrize("index", range(4))
def test_a_frozen_parameter_stays_put(index, device):
    x, y = to(device, *make_data())
    net = device_net(device)
    frozen = list(net.parameters())[index].requires_grad_(False)
    before, version = frozen.clone(), frozen._version
    plain = copy.deepcopy(net).cpu().to_sequential()
    trainer = Trainer(net, optimizer="adam", batch_size=8, shuffle=False)
    trainer.epoch(x, y)
    assert frozen.equal(before)
    assert frozen._version == version
    assert NAMES[index] not in trainer.state_dict()["state"]["exp_avg"]
    optimizer = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=0.01)
    cpu = y.cpu()
    train_with_torch(
        plain,
        x.cpu(),
        lambda z, rows: nn.functional.cross_entropy(z, cpu[rows]),
        optimizer,
        epochs=1,
        shuffle=False,
    )
    assert_near(net.cpu(), plain, 1e-11)


def test_the_net_keeps_its_parameters_and_an_older_graph_is_not_run_backward(device):
    x, y = to(device, *make_data())
    net = device_net(device)
    held, graph = net[0].weight, net.to_sequential()(x).square().sum()
    fit(net, x, y)
    assert net[0].weight is held
    assert held.device == x.device
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        graph.backward()
