"""What ``fit`` on a device refuses, before anything is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_nets import device_net, to
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_runs import (
    ROWS,
    assert_same_bits,
    make_data,
    make_net,
    one_torch_thread,  # noqa: F401
)

from twolayer import (
    Trainer,
    _native,
    fit,
    fit_many,
)


class Subclass(torch.Tensor):
    pass


REFUSED = {
    "NumPy": (
        lambda x, y: (x.cpu().numpy(), y, {}),
        TypeError,
        r"x must be a tensor on (.+), where the net is, as torch.as_tensor\(x, device='\1'\) makes one; got a Num",
    ),
    "a list": (lambda x, y: (x, y.tolist(), {}), TypeError, "y must be a tensor on .*; got list"),
    "another device": (
        lambda x, y: (x.to("meta"), y, {}),
        ValueError,
        "x must be on .*, where the net is; it is on meta",
    ),
    "y elsewhere": (lambda x, y: (x, y.to("meta"), {}), ValueError, "y must be on .*, where the net is; it is on meta"),
    "weights elsewhere": (
        lambda x, y: (x, y, {"sample_weight": torch.ones(ROWS, device="meta")}),
        ValueError,
        "sample_weight must be on",
    ),
    "NumPy class weights": (
        lambda x, y: (x, y, {"class_weight": np.ones(5)}),
        TypeError,
        "class_weight must be a tensor on .*; got a NumPy array",
    ),
    "validation elsewhere": (
        lambda x, y: (x, y, {"validation": (x.to("meta"), y)}),
        ValueError,
        "validation: x must be on",
    ),
    "sparse": (lambda x, y: (x.to_sparse_csr(), y, {}), TypeError, "x must be dense for a net on .*; it is torch.spar"),
    "a subclass": (lambda x, y: (x.as_subclass(Subclass), y, {}), TypeError, "x must be a plain tensor .*; got Subcl"),
    "complex": (lambda x, y: (x.to(torch.complex64), y, {}), TypeError, "x must hold real numbers; got complex64"),
    "width": (
        lambda x, y: (x[:, 1:], y, {}),
        ValueError,
        r"x must have shape \(rows, 9\), as the net has; got \(37, 8",
    ),
    "one dimension": (lambda x, y: (x[0], y, {}), ValueError, r"x must have shape .* got \(9,\)"),
    "no rows": (lambda x, y: (x[:0], y[:0], {}), ValueError, "x must have at least one row; got none"),
    "fewer classes": (lambda x, y: (x, y[1:], {}), ValueError, r"y must have shape \(37,\), one class for each row"),
    "classes": (
        lambda x, y: (x, y.index_fill(0, torch.tensor([7, 9], device=y.device), 5), {}),
        ValueError,
        r"y must hold classes in \[0, 5\); row 7 holds 5",
    ),
    "float classes": (
        lambda x, y: (x, y.double(), {}),
        TypeError,
        r"y must hold integer classes .*; got float64 of sh",
    ),
    "values": (
        lambda x, y: (x, x, {"loss": "mse"}),
        ValueError,
        r"y must have shape \(37, 5\) or \(5,\); got \(37, 9\)",
    ),
    "negative weight": (
        lambda x, y: (x, y, {"sample_weight": -torch.ones_like(x[:, 0])}),
        ValueError,
        "sample_weight must be finite and at least 0 everywhere",
    ),
    "weight not a number": (
        lambda x, y: (x, y, {"class_weight": x[0, :5] * torch.nan}),
        ValueError,
        "class_weight must be finite and at least 0 everywhere",
    ),
    "batches elsewhere": (lambda x, y: ([(x.to("meta"), y)], None, {}), ValueError, "x must be on .*; it is on meta"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_data_are_refused_before_anything_is_changed(make, error, message, device):
    net = device_net(device)
    x, y, options = make(*to(device, *make_data()))
    with pytest.raises(error, match=message):
        fit(net, x, y, **options)
    assert_same_bits(net, device_net(device))


def test_a_scipy_matrix_is_refused(device):
    sparse = pytest.importorskip("scipy.sparse")
    x, y = to(device, *make_data())
    with pytest.raises(TypeError, match=r"x must be dense for a net on .*; it is a csr_matrix"):
        fit(device_net(device), sparse.csr_matrix(x.cpu().numpy()), y)


def test_data_on_the_cpu_are_refused(gpu):
    x, y = make_data()
    for arguments in ((x, y.cuda()), (x.cuda(), y), (DataLoader(TensorDataset(x, y), 8),)):
        with pytest.raises(ValueError, match="must be on cuda:0, where the net is; it is on cpu"):
            fit(device_net(gpu), *arguments)
    with pytest.raises(ValueError, match="x must be on the cpu, where the net is; it is on cuda:0"):
        fit(make_net(), x.cuda(), y.cuda())
    with pytest.raises(ValueError, match=r"nets\[1\]: x must be on the cpu, where the net is; it is on cuda:0"):
        fit_many([device_net(gpu), make_net()], x.cuda(), y.cuda())


# Nets


def with_weight(device, weight, index=2, **options):
    net = device_net(device, **options)
    net[index].weight = nn.Parameter(weight.to(device))
    return net


def tied(device):
    net = device_net(device, sizes=(9, 9, 9))
    net[2].weight = net[0].weight
    return net


REFUSED_NETS = {
    "half": (lambda device: device_net(device).half(), "net's w1 must be float32 or float64 to be trained by fit"),
    "mixed": (
        lambda device: with_weight(device, torch.rand(5, 20)),
        "net's parameters must all be float32 or all float64",
    ),
    "in two places": (
        lambda device: with_weight("meta", torch.rand(5, 20), index=2).to("meta"),
        "net's w1 must be on the cpu or on cuda to be trained by fit; it is on meta",
    ),
    "transposed": (
        lambda device: with_weight(device, torch.rand(20, 5).double().T),
        r"net's w2 must be contiguous; its strides are \(1, 5\)",
    ),
    "subclass": (
        lambda device: with_weight(device, torch.rand(5, 20).double().as_subclass(Subclass)),
        "net's w2 must be a plain tensor; it is a Subclass",
    ),
    "tied": (tied, "net's w1 and w2 must not share memory to be trained by fit"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED_NETS.values(), ids=REFUSED_NETS)
def test_nets_are_refused(make, message, device):
    x, y = to(device, *make_data())
    with pytest.raises(ValueError, match=message):
        fit(make(device), x, y)


def test_a_net_in_two_places_is_refused(device):
    net = device_net(device)
    net[2].to("meta")
    with pytest.raises(ValueError, match=r"net's w2 must be on .*, as its w1 is; it is on meta"):
        fit(net, *to(device, *make_data()))


def test_a_net_that_has_moved_is_refused(device):
    x, y = to(device, *make_data())
    net = device_net(device)
    trainer = Trainer(net)
    trainer.step(x, y)
    net.float()
    with pytest.raises(ValueError, match=r"net must stay what it was trained as, .* b2, on (\S+); it is now .* on \1"):
        trainer.step(x, y)


def test_without_the_library_the_reason_is_told(device, monkeypatch):
    x, y = to(device, *make_data())
    monkeypatch.setattr(_native, "_cuda_found", (None, "it was not built; reinstall it"))
    told = (
        "where fit cannot train it: twolayer's CUDA library is not loaded: it was not built; reinstall it. On the CPU"
    )
    with pytest.raises(RuntimeError, match=rf"net is on .*, {told} it can: net.cpu\(\)"):
        fit(device_net(device), x, y)

    class Old:
        def device_problem(self, index):
            assert index == 0
            return "its compute capability is 7.5"

    monkeypatch.setattr(_native, "_cuda_found", (Old(), None))
    with pytest.raises(RuntimeError, match=r"fit cannot train it: its compute capability is 7\.5"):
        Trainer(device_net(device))
