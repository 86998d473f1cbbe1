"""``TwoLayerNet`` and ``fuse`` as drop-ins for ``nn.Sequential``: same weights, keys, values and manners."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import twolayer
from twolayer import TwoLayerNet, fuse
from twolayer import nn as twolayer_nn
from twolayer.nn import FusedSequential, ReLUSquared, Sine, activation_name, make_activation, parameters_of, plain_run
from twolayer.registry import ACTIVATIONS

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))


def sequential(activation="sigmoid", bias=True, **factory):
    return nn.Sequential(
        nn.Linear(5, 7, bias, **factory), make_activation(activation), nn.Linear(7, 3, bias, **factory)
    )


@pytest.fixture
def fused_calls(monkeypatch):
    """How often a module of twolayer's called ``two_layer``."""
    calls = []

    def spy(*arguments):
        calls.append(arguments[-1])
        return twolayer.two_layer(*arguments)

    monkeypatch.setattr(twolayer_nn, "two_layer", spy)
    return calls


# The drop-in net


@every_activation
@pytest.mark.parametrize("bias", [True, False])
def test_same_initial_weights_keys_and_values_as_sequential(activation, bias):
    torch.manual_seed(0)
    net = TwoLayerNet(5, 7, 3, activation, bias)
    torch.manual_seed(0)
    plain = sequential(activation, bias)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    assert_close(net(X), plain(X))
    net(X).square().sum().backward()
    plain(X).square().sum().backward()
    assert_close([p.grad for p in net.parameters()], [p.grad for p in plain.parameters()])


def test_state_dict_loads_in_both_directions():
    net, plain = TwoLayerNet(5, 7, 3), sequential()
    plain.load_state_dict(net.state_dict())
    assert_close(net(X), plain(X))
    net, plain = TwoLayerNet(5, 7, 3), sequential()
    net.load_state_dict(plain.state_dict())
    assert_close(net(X), plain(X))


def test_attributes_and_repr():
    net = TwoLayerNet(5, 7, 3, "gelu_tanh")
    assert (net.in_features, net.hidden_features, net.out_features, net.activation) == (5, 7, 3, "gelu_tanh")
    assert repr(net).startswith("TwoLayerNet(\n  fused: 0-1-2\n  (0): Linear(in_features=5")


def test_device_and_dtype():
    net = TwoLayerNet(5, 7, 3, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {("meta", torch.float64)}
    assert net(X.double().to("meta")).shape == (6, 3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_to_another_dtype(dtype, tolerance):
    net, plain = TwoLayerNet(5, 7, 3).to(dtype), sequential().to(dtype)
    plain.load_state_dict(net.state_dict())
    y = net(X.to(dtype))
    assert y.dtype == dtype
    assert_close(y, plain(X.to(dtype)), rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:twolayer")
def test_half():
    net = TwoLayerNet(5, 7, 3).half()
    assert_close(net(X.half()), net.to_sequential()(X.half()))


def test_deepcopy_and_pickle():
    net = TwoLayerNet(5, 7, 3, "softplus")
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(twin) is TwoLayerNet
        assert twin[0].weight is not net[0].weight
        assert torch.equal(twin(X), net(X))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(X), net(X))


def test_unknown_activation_and_wrong_input_are_refused():
    with pytest.raises(ValueError, match=r"^activation must be one of .*did you mean 'sigmoid'"):
        TwoLayerNet(5, 7, 3, "sigmod")
    with pytest.raises(ValueError, match=r"^x must have shape \(\.\.\., 5\)"):
        TwoLayerNet(5, 7, 3)(torch.zeros(2, 4))


def test_functional_call_and_fx_see_the_parameters():
    net = TwoLayerNet(5, 7, 3)
    other = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    plain = net.to_sequential()
    assert_close(torch.func.functional_call(net, other, X), torch.func.functional_call(plain, other, X))
    traced = torch.fx.symbolic_trace(net)
    assert twolayer.two_layer in {node.target for node in traced.graph.nodes}
    assert_close(traced(X), net(X))


def test_compiles_without_graph_break():
    torch._dynamo.reset()
    net = fuse(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.ReLU(), TwoLayerNet(4, 6, 3)))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(X).square().sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(X).square().sum().backward()
    assert_close([p.grad for p in net.parameters()], gradients)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        net, alone = TwoLayerNet(5, 7, 3), TwoLayerNet(5, 7, 3)
        alone.load_state_dict(net.state_dict())
        reduced = []
        parallel = nn.parallel.DistributedDataParallel(net)

        def hook(state, bucket):
            reduced.extend(bucket.parameters())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        parallel.register_comm_hook(None, hook)
        parallel(X).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    alone(X).square().sum().backward()
    assert len(reduced) == 4
    assert_close([p.grad for p in net.parameters()], [p.grad for p in alone.parameters()])


# Sequential's manners


def test_from_sequential_shares_and_to_sequential_gives_back():
    plain = sequential("silu").eval()
    net = TwoLayerNet.from_sequential(plain)
    assert [*net] == [*plain] == [*net.to_sequential()]
    assert type(net.to_sequential()) is nn.Sequential
    assert not net.training and not net.to_sequential().training
    assert_close(net(X), plain(X))


def test_from_sequential_renumbers_named_children():
    named = nn.Sequential(OrderedDict(zip(("fc1", "act", "fc2"), sequential(), strict=True)))
    assert list(TwoLayerNet.from_sequential(named).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([nn.Linear(5, 7), nn.ReLU()], "got 2 modules"),
        ([nn.Conv1d(5, 7, 1), nn.ReLU(), nn.Linear(7, 3)], r"sequential\[0\] must be an nn.Linear; got Conv1d"),
        ([nn.Linear(5, 7), nn.ReLU(), nn.ReLU()], r"sequential\[2\] must be an nn.Linear; got ReLU"),
        ([nn.Linear(5, 7), nn.LeakyReLU(0.2), nn.Linear(7, 3)], r"sequential\[1\] must be .*got LeakyReLU.*0\.2"),
    ],
)
def test_from_sequential_refuses_what_it_is_not(modules, message):
    with pytest.raises(ValueError, match=message):
        TwoLayerNet.from_sequential(nn.Sequential(*modules))


def test_from_sequential_refuses_other_modules():
    with pytest.raises(TypeError, match=r"sequential must be an nn.Sequential; got Linear"):
        TwoLayerNet.from_sequential(nn.Linear(5, 7))


def test_slices_and_changes_of_structure_are_honoured():
    net = TwoLayerNet(5, 7, 3)
    hidden = net[:2](X)
    assert_close(hidden, torch.sigmoid(net[0](X)))
    plain = net.to_sequential()
    net.append(nn.Softmax(-1))
    assert_close(net(X), plain(X).softmax(-1))
    net[1] = nn.Tanh()
    assert_close(net(X), plain[2](torch.tanh(plain[0](X))).softmax(-1))
    net[1] = nn.Dropout()
    with pytest.raises(ValueError, match="module 1 of the net must be an activation that twolayer has; it is Dropout"):
        _ = net.activation


# Activations are known by class and options


@every_activation
def test_module_of_every_activation_is_recognised(activation):
    assert activation_name(make_activation(activation)) == activation


@pytest.mark.parametrize(
    "module",
    [
        nn.LeakyReLU(0.2),
        nn.Softplus(beta=2),
        nn.Softplus(threshold=10),
        nn.Softmax(-1),
        nn.PReLU(),
        type("Mine", (nn.ReLU,), {})(),
    ],
)
def test_other_options_and_classes_are_not_recognised(module):
    assert activation_name(module) is None


def test_inplace_activation_is_recognised():
    assert activation_name(nn.ReLU(inplace=True)) == "relu"


@pytest.mark.parametrize(("module", "function"), [(ReLUSquared(), lambda z: z.relu() ** 2), (Sine(), torch.sin)])
def test_own_activation_modules(module, function):
    assert_close(module(X), function(X))


# A hook or a reparametrization is never passed over


def check_unfused(net, fused_calls):
    """The net must give what an ordinary Sequential of its modules gives, without a fused call."""
    fused_calls.clear()
    assert_close(net(X), nn.Sequential(*net)(X))
    assert fused_calls == []
    assert "fused: none" in repr(net)


def test_plain_net_is_fused(fused_calls):
    TwoLayerNet(5, 7, 3, "tanh")(X)
    assert fused_calls == ["tanh"]


@pytest.mark.parametrize("child", [0, 1, 2])
def test_hooks_on_children_run(child, fused_calls):
    net, seen = TwoLayerNet(5, 7, 3), []
    handles = [
        net[child].register_forward_hook(lambda *_: seen.append("forward")),
        net[child].register_forward_pre_hook(lambda *_: seen.append("pre")),
        net[child].register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    net(X).sum().backward()
    assert seen == ["pre", "forward", "backward"]
    check_unfused(net, fused_calls)
    for handle in handles:
        handle.remove()
    net(X)
    assert fused_calls == ["sigmoid"]


def test_global_hook_sees_the_children(fused_calls):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        TwoLayerNet(5, 7, 3)(X)
    finally:
        handle.remove()
    assert seen == ["Linear", "Sigmoid", "Linear", "TwoLayerNet"]
    assert fused_calls == []


@pytest.mark.parametrize(
    "change",
    [
        lambda net: parametrizations.weight_norm(net[0]),
        lambda net: prune.l1_unstructured(net[2], "weight", 0.5),
        lambda net: setattr(net[1], "forward", torch.cos),
        lambda net: net.__setitem__(0, nn.modules.linear.NonDynamicallyQuantizableLinear(5, 7)),
        lambda net: (delattr(net[0], "bias"), setattr(net[0], "bias", torch.ones(7))),
    ],
    ids=["parametrization", "pruning", "instance forward", "subclass of Linear", "bias as a plain attribute"],
)
def test_what_is_not_plain_is_not_fused(change, fused_calls):
    net = TwoLayerNet(5, 7, 3)
    change(net)
    check_unfused(net, fused_calls)
    with pytest.raises(ValueError, match=r"^net must be Linear → activation → Linear"):
        parameters_of(net)


def test_parameters_of_takes_a_plain_sequential_and_refuses_others():
    plain = sequential("relu", bias=False)
    assert parameters_of(plain) == plain_run(*plain) == (plain[0].weight, None, plain[2].weight, None, "relu")
    with pytest.raises(TypeError, match="got Linear"):
        parameters_of(nn.Linear(5, 7))


# fuse


class Model(nn.Module):
    """Runs to fuse at several depths, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 5)
        self.block = nn.Sequential(
            nn.Linear(5, 6),
            nn.ReLU(),
            nn.Linear(6, 6),
            nn.GELU(),
            nn.Linear(6, 5),
            nn.Sequential(sequential(), nn.Tanh()),
        )
        self.heads = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))})
        self.again = self.heads["a"]

    def forward(self, x):
        h = self.block(self.stem(x))
        return self.heads["a"](h) + self.again(h)


def test_fuse_in_depth_keeps_values_keys_parameters_and_optimizer(fused_calls, caplog):
    torch.manual_seed(0)
    model = Model()
    plain = copy.deepcopy(model)
    parameters, keys = [*model.parameters()], list(model.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, plain)]
    with caplog.at_level(logging.INFO, "twolayer.nn"):
        assert fuse(model) is model
    assert [record.args[0] for record in caplog.records] == ["block", "block.5.0", "heads.a"]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert model.again is model.heads["a"]
    assert (type(model.block), type(model.block[5][0])) == (FusedSequential, TwoLayerNet)
    for _ in range(2):
        for net, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            net(X).square().sum().backward()
            optimizer.step()
    assert_close([*model.parameters()], [*plain.parameters()])
    assert fused_calls == ["relu", "sigmoid", "silu", "silu"] * 2


def test_fuse_of_a_sequential_returns_its_replacement():
    longer = nn.Sequential(*sequential(), nn.Softmax(-1)).eval()
    fused = fuse(longer)
    assert (type(fused), fused.training) == (FusedSequential, False)
    assert "fused: 0-1-2\n" in repr(fused)
    assert list(fused.state_dict()) == list(longer.state_dict())
    assert_close(fused(X), longer(X))
    assert type(fuse(sequential())) is TwoLayerNet


def test_fuse_keeps_the_names_of_children():
    named = nn.Sequential(OrderedDict(zip(("fc1", "act", "fc2"), sequential(), strict=True)))
    fused = fuse(named)
    assert list(fused.state_dict()) == list(named.state_dict())
    assert fused.fc1 is named.fc1


def test_overlapping_runs_fuse_the_first_pair():
    layers = [nn.Linear(5, 5), nn.ReLU()]
    fused = fuse(nn.Sequential(*layers * 3, nn.Linear(5, 5)))
    assert "fused: 0-1-2, 4-5-6" in repr(fused)
    fused = fuse(nn.Sequential(*layers * 2, nn.Linear(5, 5)))
    assert "fused: 0-1-2\n" in repr(fused)


@pytest.mark.parametrize(
    "change",
    [
        lambda seq: seq.register_forward_hook(lambda *_: None),
        lambda seq: seq.register_state_dict_pre_hook(lambda *_: None),
        lambda seq: seq[0].register_forward_pre_hook(lambda *_: None),
        lambda seq: seq.register_buffer("scale", torch.ones(1)),
        lambda seq: setattr(seq, "label", "mine"),
        lambda seq: seq.__setitem__(1, nn.LeakyReLU(0.3)),
    ],
    ids=["hook", "state dict hook", "hook on a child", "buffer", "attribute", "other activation"],
)
def test_fuse_leaves_alone_what_it_would_change(change, caplog):
    plain = sequential()
    change(plain)
    assert fuse(plain) is plain
    assert "found no Linear → activation → Linear" in caplog.text


def test_fuse_leaves_subclasses_of_sequential_alone():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    block = Residual(*sequential())
    assert fuse(nn.ModuleList([block]))[0] is block


def test_fuse_refuses_what_is_no_module():
    with pytest.raises(TypeError, match=r"model must be an nn.Module; got list"):
        fuse([sequential()])


# The package's names


def test_public_names_are_lazy_and_complete():
    assert set(twolayer.__all__) <= set(dir(twolayer))
    with pytest.raises(AttributeError, match="has no attribute 'tree_layer'"):
        _ = twolayer.tree_layer
