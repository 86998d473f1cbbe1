"""The estimators: scikit-learn's own checks, its MLPs' losses, and all that fit leaves behind."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import threading
import warnings

import joblib
import numpy as np
import pytest
import scipy.sparse
from native_runs import subprocess_environment
from sklearn.base import clone
from sklearn.datasets import (
    load_diabetes,
    load_digits,
    load_iris,
    make_multilabel_classification,
    make_regression,
)
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import twolayer
from twolayer.registry import ACTIVATIONS, OPTIMIZERS
from twolayer.sklearn import TwoLayerClassifier, TwoLayerRegressor
from twolayer.sklearn.tasks import r2

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

TWINS = {TwoLayerClassifier: MLPClassifier, TwoLayerRegressor: MLPRegressor}
DIGITS, DIGIT_LABELS = load_digits(return_X_y=True)
DIGITS = DIGITS[:700] / 16
DIGIT_LABELS = DIGIT_LABELS[:700]
WEIGHTS = np.random.default_rng(0).uniform(0.5, 2, len(DIGITS))


@parametrize_with_checks([TwoLayerClassifier(), TwoLayerRegressor()])
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


# The same training as scikit-learn's


def standardised_diabetes():
    x, y = load_diabetes(return_X_y=True)
    return x * 20, (y - y.mean()) / y.std()


def labels():
    x, y = make_multilabel_classification(400, 12, random_state=0)
    return x / 20, y


def values():
    x, y = make_regression(300, 10, n_targets=3, random_state=0)
    return x, y / 100


def letters():
    return DIGITS, np.array(list("abcdefghij"))[DIGIT_LABELS]


def two_classes():
    return DIGITS, DIGIT_LABELS > 4


def digits():
    return DIGITS, DIGIT_LABELS


def iris():
    return load_iris(return_X_y=True)


SGD = {"solver": "sgd", "learning_rate_init": 0.2}
SAME_AS_SCIKIT_LEARN = [
    (TwoLayerClassifier, digits, {}),
    (TwoLayerClassifier, digits, {"alpha": 3.0, "batch_size": 64, "sample_weight": WEIGHTS}),
    (TwoLayerClassifier, digits, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "learning_rate_init": 0.01}),
    (TwoLayerClassifier, digits, {"early_stopping": True, "sample_weight": WEIGHTS, "validation_fraction": 0.3}),
    (TwoLayerClassifier, digits, {"shuffle": False, "activation": "logistic", "n_iter_no_change": 1, "tol": 0.1}),
    (TwoLayerClassifier, letters, {"activation": "tanh", **SGD, "learning_rate": "invscaling", "power_t": 0.3}),
    (TwoLayerClassifier, letters, {"activation": "tanh", **SGD, "nesterovs_momentum": False}),
    (TwoLayerClassifier, two_classes, {"early_stopping": True}),
    (TwoLayerClassifier, two_classes, {**SGD, "momentum": 0.0, "alpha": 1.0}),
    (
        TwoLayerClassifier,
        digits,
        {**SGD, "learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 2, "max_iter": 60},
    ),
    (TwoLayerClassifier, iris, {"activation": "identity"}),
    (TwoLayerClassifier, labels, {"alpha": 1.0}),
    (TwoLayerClassifier, labels, {**SGD, "early_stopping": True}),
    (TwoLayerRegressor, standardised_diabetes, {"alpha": 1.0}),
    (TwoLayerRegressor, standardised_diabetes, {"early_stopping": True, "max_iter": 80}),
    (TwoLayerRegressor, standardised_diabetes, {**SGD, "learning_rate_init": 0.05}),
    (TwoLayerRegressor, values, {"alpha": 0.0}),
    (TwoLayerRegressor, values, {**SGD, "learning_rate_init": 0.02, "alpha": 0.0, "early_stopping": True}),
]


@pytest.mark.parametrize(
    ("kind", "data", "parameters"),
    SAME_AS_SCIKIT_LEARN,
    ids=lambda value: getattr(value, "__name__", None) or " ".join(map(str, list(value)[:3])),
)
@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-10), (np.float32, 1e-3)])
def test_it_is_scikit_learn_s_training(kind, data, parameters, dtype, bound):
    x, y = data()
    x = x.astype(dtype)
    parameters = {"max_iter": 15, "random_state": 3, **parameters}
    weight = parameters.pop("sample_weight", None)
    ours = kind(20, **parameters).fit(x, y, weight)
    theirs = TWINS[kind](hidden_layer_sizes=(20,), **parameters).fit(x, y, weight)

    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if other is None:
            assert mine is None, name
        elif "validation" in name and dtype == np.float32:
            np.testing.assert_allclose(mine, other, atol=0.03, err_msg=name)  # a row may fall on the other side
        else:
            np.testing.assert_allclose(mine, other, rtol=bound, err_msg=name)
    if dtype == np.float64:
        for mine, other in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
            assert mine.shape == other.shape and mine.dtype == other.dtype
            np.testing.assert_allclose(mine, other, rtol=bound, atol=1e-12)
        assert ours.score(x, y) == pytest.approx(theirs.score(x, y), rel=1e-9)
    if kind is TwoLayerClassifier:
        np.testing.assert_array_equal(ours.classes_, theirs.classes_)
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), rtol=1e-2, atol=1e-3)


def test_parameters_and_defaults_are_scikit_learn_s():
    own = {"hidden_layer_size", "weight_decay", "precision", "n_jobs", "class_weight", "loss"}
    defaults = []
    for kind, twin in TWINS.items():
        ours = {name: p.default for name, p in inspect.signature(kind).parameters.items()}
        theirs = {name: p.default for name, p in inspect.signature(twin).parameters.items()}
        assert ours.keys() - theirs.keys() <= own
        assert theirs.keys() - ours.keys() == {"hidden_layer_sizes", "max_fun"}
        assert {name: ours[name] for name in ours.keys() & theirs.keys()} == {
            name: theirs[name] for name in ours.keys() & theirs.keys()
        }
        defaults.append({name: ours[name] for name in ours.keys() - {"class_weight", "loss"}})
    assert defaults[0] == defaults[1]


def test_a_loss_of_several_outputs_differs_from_scikit_learn_s_by_the_penalty_s_share_only():
    x, y = values()
    parameters = {"alpha": 5.0, "max_iter": 5, "random_state": 0}
    ours = TwoLayerRegressor(20, **parameters).fit(x, y)
    theirs = MLPRegressor(hidden_layer_sizes=(20,), **parameters).fit(x, y)
    np.testing.assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-9)  # the gradients are the same
    assert (np.array(ours.loss_curve_) < theirs.loss_curve_).all()


@pytest.mark.parametrize("kind", TWINS)
def test_partial_fit_is_scikit_learn_s(kind):
    x, y = digits() if kind is TwoLayerClassifier else standardised_diabetes()
    more = {"classes": np.arange(10)} if kind is TwoLayerClassifier else {}
    for parameters in ({}, {**SGD, "learning_rate_init": 0.05, "learning_rate": "invscaling"}):
        ours, theirs = (
            kind(20, random_state=0, **parameters),
            TWINS[kind](hidden_layer_sizes=(20,), random_state=0, **parameters),
        )
        for first in (0, 150, 270):
            rows = slice(first, first + 170)
            ours.partial_fit(x[rows], y[rows], **more)
            theirs.partial_fit(x[rows], y[rows], **more)
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-10)
        np.testing.assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-9, atol=1e-12)
        assert ours.t_ == theirs.t_


@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_warm_start_is_scikit_learn_s(kind, early_stopping):
    x, y = digits() if kind is TwoLayerClassifier else standardised_diabetes()
    parameters = {"warm_start": True, "max_iter": 4, "random_state": 0, "early_stopping": early_stopping}
    ours, theirs = kind(20, **parameters), TWINS[kind](hidden_layer_sizes=(20,), **parameters)
    for _ in range(3):
        ours.fit(x, y)
        theirs.fit(x, y)
    assert len(ours.loss_curve_) == 12
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-10)
    np.testing.assert_allclose(ours.coefs_[1], theirs.coefs_[1], rtol=1e-8, atol=1e-10)


def test_mnist_by_its_bytes():
    try:
        mnist = twolayer.load_mnist(download=False)
    except twolayer.data.DatasetNotFoundError as error:
        pytest.skip(str(error).splitlines()[0])
    pixels, y = mnist.x_train[:6000].reshape(6000, -1), mnist.y_train[:6000]
    parameters = {"max_iter": 3, "random_state": 1}
    ours = TwoLayerClassifier(50, **parameters).fit(pixels, y)  # uint8, read as they are
    as_floats = TwoLayerClassifier(50, **parameters).fit(pixels.astype(np.float32), y)
    np.testing.assert_array_equal(ours.coefs_[0], as_floats.coefs_[0])
    theirs = MLPClassifier((50,), **parameters).fit(pixels.astype(np.float32), y)
    test = mnist.x_test.reshape(len(mnist.x_test), -1)
    assert ours.score(test, mnist.y_test) == pytest.approx(theirs.score(test, mnist.y_test), abs=0.02)


# What is ours alone


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("solver", OPTIMIZERS)
def test_every_activation_and_solver_learns(activation, solver):
    x, y = iris()
    rate = {"sgd": 0.02, "adagrad": 0.05}.get(solver, 0.01)
    model = TwoLayerClassifier(
        16, activation, solver=solver, learning_rate_init=rate, batch_size=16, max_iter=60, random_state=0
    )
    assert make_pipeline(StandardScaler(), model).fit(x, y).score(x, y) > 0.85


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber"])
def test_every_loss_of_regression_learns(loss):
    x, y = make_regression(400, 5, random_state=0)
    model = TwoLayerRegressor(30, loss=loss, learning_rate_init=0.01, max_iter=100, random_state=0)
    assert model.fit(x, y / y.std()).score(x, y / y.std()) > 0.9


def test_precisions():
    x, y = digits()
    fits = {
        p: TwoLayerClassifier(20, precision=p, max_iter=10, random_state=0).fit(x, y)
        for p in ("auto", "float64", "float32", "bfloat16")
    }
    assert [fit.coefs_[0].dtype.name for fit in fits.values()] == ["float64", "float64", "float32", "float32"]
    np.testing.assert_array_equal(fits["auto"].loss_curve_, fits["float64"].loss_curve_)
    np.testing.assert_allclose(fits["float32"].loss_curve_, fits["float64"].loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(fits["bfloat16"].loss_curve_, fits["float64"].loss_curve_, rtol=1e-1)
    assert fits["bfloat16"].loss_curve_ != fits["float32"].loss_curve_
    assert fits["float32"].predict_proba(x).dtype == np.float32


@pytest.mark.parametrize("max_iter", [2, 25])
def test_float64_inputs_of_a_float32_net_are_as_if_they_were_float32(max_iter):
    x, y = digits()
    fits = [
        TwoLayerClassifier(20, precision="float32", max_iter=max_iter, random_state=0).fit(given, y)
        for given in (x, x.astype(np.float32))
    ]
    np.testing.assert_array_equal(fits[0].coefs_[0], fits[1].coefs_[0])


def test_weight_decay_is_adamw_s():
    x, y = digits()
    plain, decayed = (
        TwoLayerClassifier(20, solver="adamw", weight_decay=w, max_iter=10, random_state=0).fit(x, y) for w in (0, 30)
    )
    assert np.linalg.norm(decayed.coefs_[0]) < 0.9 * np.linalg.norm(plain.coefs_[0])
    with pytest.raises(ValueError, match=r"weight_decay goes with solver 'adamw'; the solver is 'adam'"):
        TwoLayerClassifier(weight_decay=0.1).fit(x, y)


def test_class_weight_is_a_sample_weight():
    x, y = digits()
    by_class = np.linspace(0.5, 2, 10)
    parameters = {"max_iter": 5, "random_state": 0}
    weighted = TwoLayerClassifier(20, class_weight=dict(enumerate(by_class)), **parameters).fit(x, y, WEIGHTS)
    expected = TwoLayerClassifier(20, **parameters).fit(x, y, WEIGHTS * by_class[y])
    np.testing.assert_array_equal(weighted.coefs_[0], expected.coefs_[0])
    labelled = labels()
    halves = [{0: 1, 1: 3}] * labelled[1].shape[1]
    balanced = TwoLayerClassifier(20, class_weight=halves, max_iter=30, random_state=0).fit(*labelled)
    plain = TwoLayerClassifier(20, max_iter=30, random_state=0).fit(*labelled)
    assert balanced.predict(labelled[0]).sum() > plain.predict(labelled[0]).sum()
    with pytest.raises(ValueError, match="class_weight 'balanced' needs all of y"):
        TwoLayerClassifier(class_weight="balanced").partial_fit(x, y, classes=np.arange(10))


def test_a_row_without_weight_is_as_if_it_were_not_there():
    x, y = digits()
    kept = np.arange(len(x)) % 3 > 0
    parameters = {"max_iter": 5, "random_state": 0, "early_stopping": True}
    weighted = TwoLayerClassifier(20, **parameters).fit(x, y, kept.astype(float))
    left_out = TwoLayerClassifier(20, **parameters).fit(x[kept], y[kept], np.ones(kept.sum()))
    np.testing.assert_array_equal(weighted.coefs_[0], left_out.coefs_[0])


@pytest.mark.parametrize("make", [scipy.sparse.csr_matrix, scipy.sparse.csr_array, scipy.sparse.csc_array])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_sparse_is_dense(make, early_stopping):
    x, y = digits()
    parameters = {"max_iter": 5, "random_state": 0, "early_stopping": early_stopping}
    dense, sparse = (TwoLayerClassifier(20, **parameters).fit(inputs, y) for inputs in (x, make(x)))
    np.testing.assert_allclose(sparse.coefs_[0], dense.coefs_[0], rtol=1e-12)
    np.testing.assert_allclose(sparse.predict_proba(make(x)), dense.predict_proba(x), rtol=1e-10)


def test_entries_of_a_sparse_matrix_that_are_named_twice_add_up():
    x = scipy.sparse.csr_array(DIGITS)
    doubled = scipy.sparse.csr_array((x.data.repeat(2) / 2, x.indices.repeat(2), x.indptr * 2), x.shape)
    assert not doubled.has_canonical_format
    fits = [TwoLayerClassifier(20, max_iter=3, random_state=0).fit(given, DIGIT_LABELS) for given in (x, doubled)]
    np.testing.assert_array_equal(fits[0].coefs_[0], fits[1].coefs_[0])
    assert doubled.nnz == 2 * x.nnz  # the caller's is as it was


def test_a_wide_sparse_matrix_is_never_made_dense():
    draw = np.random.default_rng(0)
    x = scipy.sparse.random(400, 200_000, density=1e-4, format="csr", dtype=np.float32, random_state=draw)
    y = draw.integers(0, 2, 400)  # dense, x were 320 MB; a batch and the weights are 20 MB
    model = TwoLayerClassifier(4, max_iter=2, batch_size=8, random_state=0, early_stopping=True).fit(x, y)
    assert model.predict_proba(x).shape == (400, 2)


def test_the_same_random_state_gives_the_same_bits_at_any_number_of_threads():
    x, y = digits()
    fits = [TwoLayerClassifier(random_state=7, max_iter=5, n_jobs=n).fit(x, y) for n in (1, 2, 3, -1, None)]
    for other in fits[1:]:
        for a, b in zip(fits[0].coefs_, other.coefs_, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(fits[0].coefs_[0], TwoLayerClassifier(random_state=8, max_iter=5).fit(x, y).coefs_[0])


def test_scores_are_scikit_learn_s():
    draw = np.random.default_rng(0)
    y, z, weight = draw.normal(size=(50, 3)), draw.normal(size=(50, 3)), draw.random(50)
    y[:, 2] = 1.0
    for w in (None, weight):
        assert r2(z, y, w) == pytest.approx(r2_score(y, z, sample_weight=w))
    z[:, 2] = 1.0
    assert r2(z, y, None) == pytest.approx(r2_score(y, z))
    assert np.isnan(r2(z * np.inf, y, None))


def test_one_class_is_learned_and_said():
    model = TwoLayerClassifier(5, max_iter=2).fit(DIGITS, np.full(len(DIGITS), "only"))
    assert set(model.predict(DIGITS)) == {"only"}
    np.testing.assert_array_equal(model.predict_proba(DIGITS), np.ones((len(DIGITS), 1)))


def test_log_proba_is_finite_where_a_probability_vanishes():
    for y in (DIGIT_LABELS, DIGIT_LABELS > 4):
        model = TwoLayerClassifier(20, max_iter=30, random_state=0).fit(DIGITS, y)
        model.coefs_ = [1000 * array for array in model.coefs_]
        proba, log_proba = model.predict_proba(DIGITS), model.predict_log_proba(DIGITS)
        assert (proba == 0).any() and np.isfinite(log_proba).all()
        np.testing.assert_allclose(np.exp(log_proba), proba, rtol=1e-6, atol=1e-12)


# What fit leaves behind


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), "joblib"], ids=["pickle", "joblib"])
@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_copy_predicts_and_goes_on_to_the_same_bits(copied, solver, tmp_path):
    x, y = digits()
    model = TwoLayerClassifier(20, solver=solver, random_state=0)
    model.partial_fit(x, y, classes=np.arange(10)).partial_fit(x, y)
    if copied == "joblib":
        joblib.dump(model, tmp_path / "model")
        twin = joblib.load(tmp_path / "model")
    else:
        twin = copied(model)
    np.testing.assert_array_equal(twin.predict_proba(x), model.predict_proba(x))
    for each in (model, twin):
        each.partial_fit(x, y).partial_fit(x, y)
    np.testing.assert_array_equal(twin.coefs_[0], model.coefs_[0])
    np.testing.assert_array_equal(twin.predict_proba(x), model.predict_proba(x))


def test_a_pickle_holds_the_weights_once():
    x, y = digits()
    model = TwoLayerClassifier(400, solver="sgd", momentum=0.0, max_iter=1).fit(x, y)
    assert len(pickle.dumps(model)) < 1.2 * sum(array.nbytes for array in model.coefs_)


def test_predictions_follow_the_weights():
    x, y = digits()
    model = TwoLayerClassifier(20, random_state=0, max_iter=3).fit(x, y)
    first = model.predict_proba(x)
    model.partial_fit(x, y)
    second = model.predict_proba(x)
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="read-only"):
        model.coefs_[0][0, 0] = 1.0
    model.coefs_[1] = np.zeros_like(model.coefs_[1])
    model.intercepts_[1] = own = np.zeros(10)
    np.testing.assert_allclose(model.predict_proba(x), 0.1)
    own[3] = np.log(11)
    np.testing.assert_allclose(model.predict_proba(x)[:, 3], 0.55)
    own[3] = 0
    model.partial_fit(x, y)  # from these weights
    assert model.loss_ < np.log(10) + 0.1 and not np.allclose(model.predict_proba(x), 0.1)
    model.fit(x, y)
    np.testing.assert_array_equal(model.predict_proba(x), first)
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(model)).intercepts_[0][0] = 1.0


def test_predict_packs_the_weights_once(monkeypatch):
    x, y = digits()
    model = TwoLayerClassifier(20, random_state=0, max_iter=3).fit(x, y)
    made = []
    make = twolayer.NumpyNet.predictor
    monkeypatch.setattr(twolayer.NumpyNet, "predictor", lambda net, threads: made.append(net) or make(net, threads))
    for _ in range(3):
        model.predict(x)
    model.predict_proba(x[:1])
    assert len(made) == 1


def test_predict_from_several_threads():
    x, y = digits()
    model = TwoLayerClassifier(20, random_state=0, max_iter=3).fit(x, y)
    expected, found = model.predict_proba(x), [None] * 4
    model = pickle.loads(pickle.dumps(model))  # with nothing packed yet

    def predict(i):
        found[i] = model.predict_proba(x)

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        np.testing.assert_array_equal(each, expected)


def test_pipelines_searches_and_clones():
    x, y = digits()
    pipeline = make_pipeline(StandardScaler(), TwoLayerClassifier(random_state=0, learning_rate_init=0.01, max_iter=40))
    grid = {"twolayerclassifier__alpha": [1e-4, 1.0], "twolayerclassifier__hidden_layer_size": np.array([2, 30])}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(x, y)
    assert search.best_params_["twolayerclassifier__hidden_layer_size"] == 30
    assert search.best_score_ > 0.8
    copy = clone(search.best_estimator_)
    with pytest.raises(NotFittedError):
        copy.predict(x)
    assert cross_val_score(copy, x, y, cv=2).min() > 0.8


def test_names_of_features():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(DIGITS[:, :3], columns=["a", "b", "c"])
    model = TwoLayerClassifier(5, max_iter=2).fit(frame, DIGIT_LABELS)
    assert list(model.feature_names_in_) == ["a", "b", "c"]


def test_verbose_says_what_scikit_learn_says(capsys):
    parameters = {"verbose": True, "random_state": 0, "max_iter": 30, "tol": 0.1, "n_iter_no_change": 2}
    parameters |= {"early_stopping": True, "solver": "sgd", "learning_rate": "adaptive"}
    TwoLayerClassifier(20, **parameters).fit(DIGITS, DIGIT_LABELS)
    ours = capsys.readouterr().out
    MLPClassifier((20,), **parameters).fit(DIGITS, DIGIT_LABELS)
    assert ours == capsys.readouterr().out


def test_warnings():
    x, y = digits()
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        TwoLayerClassifier(5, max_iter=2).fit(x, y)
    with pytest.warns(UserWarning, match="batch_size is 1000; it is cut to the 700 rows that there are"):
        TwoLayerClassifier(5, max_iter=2, batch_size=1000).fit(x, y)
    with pytest.warns(DataConversionWarning):
        TwoLayerRegressor(5, max_iter=2).fit(x, y[:, None].astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TwoLayerClassifier(5).partial_fit(x, y, classes=np.arange(10))


# Refusals

REFUSALS = [
    ({"hidden_layer_size": 0}, ValueError, "hidden_layer_size must be at least 1"),
    ({"hidden_layer_size": (100,)}, TypeError, "hidden_layer_size must be an integer; got tuple"),
    ({"activation": "logistics"}, ValueError, r"activation must be one of .*; got 'logistics'"),
    ({"solver": "lbfgs"}, ValueError, r"solver must be one of sgd, adam, .*; got 'lbfgs'"),
    ({"alpha": -1.0}, ValueError, "alpha must be finite and at least 0; got -1.0"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"batch_size": "big"}, ValueError, "batch_size must be one of 'auto'; got 'big'"),
    ({"learning_rate": "warm"}, ValueError, "learning_rate must be one of 'constant', .*; got 'warm'"),
    ({"learning_rate_init": 0.0}, ValueError, "learning_rate_init must be above 0; got 0.0"),
    ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    ({"shuffle": "yes"}, TypeError, "shuffle must be True or False; got 'yes'"),
    ({"momentum": 1.5}, ValueError, "momentum must be finite and at least 0 and at most 1; got 1.5"),
    ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be below 1; got 1.0"),
    ({"validation_fraction": 1e-4, "early_stopping": True}, ValueError, "validation_fraction must hold out at least 2"),
    ({"beta_1": 1.0}, ValueError, "beta_1 must be below 1; got 1.0"),
    ({"epsilon": 0}, ValueError, "epsilon must be above 0; got 0"),
    ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change must be at least 1"),
    ({"precision": "half"}, ValueError, "precision must be one of 'auto', .*; got 'half'"),
    ({"n_jobs": 0}, ValueError, "n_jobs must be None, -1 for all cores, or at least 1; got 0"),
    ({"random_state": "a"}, ValueError, "'a' cannot be used to seed"),
]


@pytest.mark.parametrize(("parameters", "error", "message"), REFUSALS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("kind", TWINS)
def test_a_wrong_parameter_is_refused_and_named(kind, parameters, error, message):
    with pytest.raises(error, match=message):
        kind(**parameters).fit(DIGITS, DIGIT_LABELS)


def test_wrong_targets_are_refused():
    x, y = digits()
    model = TwoLayerClassifier(5, max_iter=2, warm_start=True)
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        model.partial_fit(x, y)
    model.fit(x, y)
    with pytest.raises(ValueError, match="y must hold the classes of earlier calls"):
        model.fit(x, y % 5)
    with pytest.raises(ValueError, match="y must hold the classes of earlier calls"):
        model.partial_fit(x, y + 1)
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(x, y, classes=np.arange(11))
    with pytest.raises(ValueError, match="y must hold what it held in earlier calls"):
        model.partial_fit(x, np.eye(10, dtype=int)[y])
    with pytest.raises(ValueError, match="hidden_layer_size and activation must stay what they were, 5 and 'relu'"):
        model.set_params(hidden_layer_size=6).fit(x, y)
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        model.set_params(early_stopping=True).partial_fit(x, y)
    with pytest.raises(ValueError, match="y must hold one class for each row"):
        TwoLayerClassifier().fit(x, np.stack([y, y], axis=1))
    with pytest.raises(ValueError, match=r"sample_weight must be above 0 somewhere|[Zz]ero"):
        TwoLayerClassifier().fit(x, y, np.zeros(len(x)))
    with pytest.raises(ValueError, match="sample_weight must be finite and at least 0"):
        TwoLayerClassifier().fit(x, y, np.where(y == 0, -1.0, 1.0))
    regressor = TwoLayerRegressor(5, max_iter=2).fit(x, y)
    with pytest.raises(ValueError, match="y must have as many outputs as in earlier calls, 1; it has 2"):
        regressor.partial_fit(x, np.stack([y, y], axis=1))
    with pytest.raises(ValueError, match=r"loss must be one of 'squared_error', .*; got 'poisson'"):
        TwoLayerRegressor(loss="poisson").fit(x, y)


def test_training_that_diverges_says_so():
    x, y = standardised_diabetes()
    with pytest.raises(ValueError, match="Training produced non-finite parameter weights"):
        TwoLayerRegressor(5, solver="sgd", learning_rate_init=1e6, activation="identity").fit(x * 1e6, y * 1e6)


# Imports


def run_python(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        env=subprocess_environment() | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_no_torch_is_imported_even_by_fit_and_predict():
    done = run_python(
        "import sys, numpy as np, twolayer\n"
        "assert 'sklearn' not in sys.modules\n"
        "x, y = np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 3\n"
        "model = twolayer.sklearn.TwoLayerClassifier(early_stopping=True, max_iter=3).fit(x, y)\n"
        "model.predict(x), twolayer.sklearn.TwoLayerRegressor(max_iter=3).fit(x, y).predict(x)\n"
        "assert 'sklearn' in sys.modules and 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_the_reference_takes_over_where_the_library_is_not_loaded():
    program = (
        "import numpy as np\n"
        "from sklearn.datasets import load_iris\n"
        "from twolayer.sklearn import TwoLayerClassifier\n"
        "x, y = load_iris(return_X_y=True)\n"
        "print(repr(TwoLayerClassifier(8, random_state=0, max_iter=20, early_stopping=True).fit(x, y).loss_))"
    )
    native = run_python(program)
    fallback = run_python(program, TWOLAYER_DISABLE_NATIVE="1", TWOLAYER_REQUIRE_NATIVE="0")
    assert native.returncode == fallback.returncode == 0, native.stderr + fallback.stderr
    assert float(fallback.stdout) == pytest.approx(float(native.stdout), rel=1e-10)


def test_without_scikit_learn_the_error_names_the_extra():
    done = run_python("import sys; sys.modules['sklearn'] = None; import twolayer; twolayer.sklearn")
    assert "ImportError: twolayer.sklearn needs scikit-learn ≥ 1.6: pip install 'twolayer[sklearn]'" in done.stderr
