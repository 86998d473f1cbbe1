"""Nets in other libraries: scikit-learn, torch.export, ONNX, safetensors, mixed precision, distributed training."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from native_runs import subprocess_environment
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn
from torch.nn.functional import cross_entropy
from training_runs import one_torch_thread  # noqa: F401

from twolayer import NumpyNet, TwoLayerNet, fit, fuse
from twolayer.convert import from_sklearn, to_numpy, to_sklearn, to_torch
from twolayer.registry import ACTIVATIONS

EXAMPLES = Path(__file__).parents[1] / "examples"
X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])
SHORT = {"hidden_layer_sizes": (7,), "max_iter": 20, "random_state": 0}


def fitted(estimator, x=X, y=Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(x, y)


def outputs(net, x=X, dtype=torch.float64):
    with torch.no_grad():
        return net(torch.tensor(x, dtype=dtype))


# scikit-learn


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_many_classes_are_those_of_sklearn(activation, dtype):
    estimator = fitted(MLPClassifier(activation=activation, **SHORT), X.astype(dtype), NAMES[Y])
    net = from_sklearn(estimator)
    assert net[0].weight.dtype is torch.tensor(X.astype(dtype)).dtype
    scores = outputs(net, X, net[0].weight.dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is np.float32 else {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(scores.softmax(1), estimator.predict_proba(X.astype(dtype)), **tolerance)
    assert (estimator.classes_[scores.argmax(1)] == estimator.predict(X.astype(dtype))).all()


def test_two_classes_have_one_score_and_labels_one_each():
    two = fitted(MLPClassifier(**SHORT), X[:100], NAMES[Y[:100]])
    net = from_sklearn(two)
    assert net.out_features == 1
    np.testing.assert_allclose(outputs(net).sigmoid()[:, 0], two.predict_proba(X)[:, 1], rtol=1e-12, atol=1e-14)
    many = fitted(MLPClassifier(**SHORT), X, np.stack([Y == 0, Y > 0, Y == 2], 1).astype(int))
    np.testing.assert_allclose(outputs(from_sklearn(many)).sigmoid(), many.predict_proba(X), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("targets", [X[:, 3], X[:, 2:]], ids=["one", "two"])
def test_a_regressors_net_predicts_what_it_predicts(targets):
    estimator = fitted(MLPRegressor(**SHORT), X[:, :2], targets)
    predicted = outputs(from_sklearn(estimator), X[:, :2]).squeeze(1)
    np.testing.assert_allclose(predicted, estimator.predict(X[:, :2]), rtol=1e-12, atol=1e-14)


def test_a_poisson_regressors_net_gives_logarithms():
    estimator = fitted(MLPRegressor(loss="poisson", **SHORT), X[:, :2], X[:, 3])
    predicted = outputs(from_sklearn(estimator), X[:, :2]).exp()[:, 0]
    np.testing.assert_allclose(predicted, estimator.predict(X[:, :2]), rtol=1e-12)


def test_a_net_from_sklearn_is_trained_and_shares_nothing():
    estimator = fitted(MLPClassifier(**SHORT))
    before = estimator.predict_proba(X)
    fit(net := from_sklearn(estimator), X, Y, epochs=50, optimizer="adam", lr=0.01)
    assert (outputs(net).argmax(1).numpy() == Y).mean() > 0.9
    np.testing.assert_array_equal(estimator.predict_proba(X), before)


@pytest.mark.parametrize("net", [TwoLayerNet(4, 6, 3, "tanh", bias=False), NumpyNet(4, 6, 3, "sigmoid")])
def test_to_sklearn_and_back(net):
    estimator = to_sklearn(net, NAMES)
    scores = outputs(net, X, torch.float32) if isinstance(net, TwoLayerNet) else torch.tensor(net(X))
    np.testing.assert_allclose(estimator.predict_proba(X.astype(np.float32)), scores.softmax(1), rtol=1e-4, atol=1e-6)
    assert set(estimator.predict(X)) <= set(NAMES)
    torch.testing.assert_close(outputs(from_sklearn(estimator), X, torch.float32), scores)
    estimator.partial_fit(X.astype(np.float32), NAMES[Y])
    assert estimator.score(X, NAMES[Y]) >= 0


@pytest.mark.parametrize("out", [1, 2])
def test_two_classes_to_sklearn(out):
    net = TwoLayerNet(4, 6, out, "relu", dtype=torch.float64)
    scores = outputs(net)
    expected = scores.sigmoid()[:, 0] if out == 1 else scores.softmax(1)[:, 1]
    estimator = to_sklearn(net, [False, True])
    np.testing.assert_allclose(estimator.predict_proba(X)[:, 1], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("out", [1, 3])
def test_a_regressor_to_sklearn(out):
    net = TwoLayerNet(4, 6, out, "relu", dtype=torch.float64)
    np.testing.assert_allclose(to_sklearn(net).predict(X), outputs(net).squeeze(1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("convert", "error", "message"),
    [
        (lambda: from_sklearn(LogisticRegression()), TypeError, "estimator must be an MLPClassifier or MLPRegressor"),
        (lambda: from_sklearn(MLPClassifier()), ValueError, "estimator must be fitted; this MLPClassifier has no"),
        (
            lambda: from_sklearn(fitted(MLPClassifier((3, 2), max_iter=1))),
            ValueError,
            "estimator must have one hidden layer; it has 2",
        ),
        (lambda: to_sklearn(TwoLayerNet(4, 6, 3, "gelu"), NAMES), ValueError, "net's activation must be one of ident"),
        (lambda: to_sklearn(TwoLayerNet(4, 6, 3), [0, 1]), ValueError, "classes must be 3 labels for a net with 3 out"),
        (lambda: to_sklearn(TwoLayerNet(4, 6, 3), [0, 2, 1]), ValueError, "classes must be distinct and in ascending"),
        (lambda: to_sklearn(nn.Linear(2, 2)), TypeError, "net must be a TwoLayerNet or an nn.Sequential; got Linear"),
        (lambda: to_numpy(TwoLayerNet(4, 6, 3).bfloat16()), ValueError, "net must be float32 or float64 to become a"),
        (lambda: to_torch(TwoLayerNet(4, 6, 3)), TypeError, "net must be a NumpyNet; got TwoLayerNet"),
    ],
)
def test_what_does_not_fit_is_refused(convert, error, message):
    with pytest.raises(error, match=message):
        convert()


@pytest.mark.parametrize("bias", [True, False])
def test_to_numpy_and_back(bias):
    net = TwoLayerNet(4, 6, 3, "gelu", bias=bias)
    copied = to_numpy(net)
    again = to_torch(copied)
    torch.testing.assert_close(torch.tensor(copied(X)), outputs(net, X, torch.float32))
    assert repr(again) == repr(net)
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)
    copied.w1[:] = 0
    assert net[0].weight.abs().min() > 0


# torch.export and ONNX


def exported_to_onnx(model, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(model, (torch.randn(4, 5),), path, verbose=False, **options)
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


class OneOfEach(nn.Module):
    """A net for every activation, side by side: exporting one takes a second."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([TwoLayerNet(5, 7, 3, activation) for activation in ACTIVATIONS])

    def forward(self, x):
        return torch.stack([net(x) for net in self.nets])


def test_onnx_gives_the_same_for_any_number_of_rows(tmp_path):
    model = OneOfEach().eval()
    run = exported_to_onnx(model, tmp_path / "net.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},))
    for rows in (1, 4, 9):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(run(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_of_a_fused_model_and_without_biases(tmp_path):
    model = fuse(nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 7, bias=False), nn.GELU(), nn.Linear(7, 2, bias=False)))
    x = torch.randn(4, 5)
    run = exported_to_onnx(model.eval(), tmp_path / "model.onnx")
    torch.testing.assert_close(run(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_by_the_older_exporter(tmp_path):
    net = TwoLayerNet(5, 7, 3, "gelu").eval()
    axes = {"x": {0: "rows"}}
    run = exported_to_onnx(net, tmp_path / "net.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes)
    x = torch.randn(9, 5)
    torch.testing.assert_close(run(x), net(x).detach(), rtol=1e-4, atol=1e-5)


def test_an_exported_program_keeps_the_op_and_comes_back_from_a_file(tmp_path):
    net = TwoLayerNet(5, 7, 3, "gelu")
    program = torch.export.export(net, (torch.randn(4, 5),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2")
    for exported in (program, loaded, program.run_decompositions()):
        targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
        assert targets == ["twolayer.forward.default"]
        x = torch.randn(9, 5)
        torch.testing.assert_close(exported.module()(x), net(x), rtol=0, atol=0)


# safetensors


def test_safetensors_bring_every_bit_back(tmp_path):
    net, other = TwoLayerNet(5, 7, 3, "gelu"), TwoLayerNet(5, 7, 3, "gelu")
    safetensors.torch.save_model(net, tmp_path / "net.safetensors")
    assert safetensors.torch.load_model(other, tmp_path / "net.safetensors") == (set(), [])
    plain = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    for loaded in (other, plain):
        torch.testing.assert_close(loaded.state_dict(), net.state_dict(), rtol=0, atol=0)


# Mixed precision


@pytest.mark.parametrize("scaled", [False, True])
def test_a_loop_with_autocast_trains_as_the_plain_modules_do(scaled):
    digits = load_digits()
    x, y = torch.tensor(digits.data[:960] / 16, dtype=torch.float32), torch.tensor(digits.target[:960])
    torch.manual_seed(0)
    net = TwoLayerNet(64, 32, 10, "relu")
    plain = copy.deepcopy(net).to_sequential()
    losses = []
    for model in (net, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, growth_interval=20)
        for _ in range(8):
            for rows in torch.arange(960).split(64):
                with torch.autocast("cpu", torch.bfloat16):
                    z = model(x[rows])
                    assert z.dtype is torch.bfloat16
                    loss = cross_entropy(z, y[rows])
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                assert all(p.grad.dtype is torch.float32 for p in model.parameters())
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                scaler.step(optimizer)
                scaler.update()
        losses.append(cross_entropy(model(x), y).item())
        if scaled:
            assert scaler.get_scale() == 65536 * 2**6  # no step of the 120 was left out
    assert losses[0] < 0.4
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_the_scaler_leaves_out_a_step_that_overflows():
    net = TwoLayerNet(5, 7, 3, "relu")
    before = copy.deepcopy(net.state_dict())
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    scaler.scale(net(torch.full((2, 5), 1e38)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert scaler.get_scale() == 65536 / 2


# Several processes


def test_two_processes_give_what_one_gives_with_the_joint_batch():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(EXAMPLES / "ddp.py")],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 processes: loss of one process 0.")
