"""The estimators against scikit-learn's MLPs at equal parameters: time of ``fit``, in turns, and what each scores.

    python benchmarks/estimators.py            # five turns; two minutes
    python benchmarks/estimators.py --turns 3 digits iris

A case is timed only after both were seen to give the same losses in float64. MNIST is read from ``TWOLAYER_DATA``.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

import twolayer
from twolayer.data import DatasetNotFoundError
from twolayer.sklearn import TwoLayerClassifier, TwoLayerRegressor

Array = NDArray[Any]
Data = tuple[Array, Array, Array, Array]  # x and y to train on, x and y to be tested on
PAUSE = 0.1  # seconds, after which the threads of whoever ran before no longer spin
SAME_LOSS = 1e-6  # relative, over a whole fit: rounding grows


class Case(NamedTuple):
    load: Callable[[], Data]
    is_classifier: bool
    hidden: int = 100
    target: float | None = None  # times as fast, at equal precision
    parameters: dict[str, Any] = {}


def split(x: Array, y: Array) -> Data:
    x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)
    return x_train, y_train, x_test, y_test


def standardised(x: Array, y: Array) -> Data:
    x_train, y_train, x_test, y_test = split(x, y)
    scaler = StandardScaler().fit(x_train)
    mean, scale = y_train.mean(), y_train.std()
    return scaler.transform(x_train), (y_train - mean) / scale, scaler.transform(x_test), (y_test - mean) / scale


def california() -> Data:
    """20,640 rows of eight skewed features and a bounded target, as in California housing, which must be downloaded."""
    draw = np.random.default_rng(0)
    x = np.exp(draw.normal(0, 0.5, (20_640, 8)))
    y = np.minimum(x[:, 0] * np.exp(-((x[:, 6] - 1) ** 2 + (x[:, 7] - 1) ** 2)) + 0.2 * np.log(x[:, 1] / x[:, 2]), 5)
    return standardised(x, y + draw.normal(0, 0.2, len(y)))


def mnist() -> Data:
    found = twolayer.load_mnist(download=False)
    return *_pixels(found.x_train, found.y_train), *_pixels(found.x_test, found.y_test)


def _pixels(x: Array, y: Array) -> tuple[Array, Array]:
    return x.reshape(len(x), -1) / 255.0, y


EXAMPLE = {"solver": "sgd", "learning_rate_init": 0.2, "max_iter": 8}  # scikit-learn's own, of MNIST's weights
CASES = {
    "digits": Case(lambda: split(*_scaled_digits()), True, target=5),
    "iris": Case(lambda: split(*load_iris(return_X_y=True)), True),
    "diabetes": Case(lambda: standardised(*load_diabetes(return_X_y=True)), False),
    "california-like": Case(california, False, parameters={"max_iter": 30}),
    "MNIST": Case(mnist, True, target=10, parameters={"max_iter": 10}),
    "MNIST, sgd, 40": Case(mnist, True, hidden=40, target=10, parameters=EXAMPLE),
}


def _scaled_digits() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


def theirs(case: Case) -> Any:
    kind = MLPClassifier if case.is_classifier else MLPRegressor
    return kind(hidden_layer_sizes=(case.hidden,), random_state=1, **case.parameters)


def ours(case: Case, **options: Any) -> Any:
    kind = TwoLayerClassifier if case.is_classifier else TwoLayerRegressor
    return kind(hidden_layer_size=case.hidden, random_state=1, **case.parameters, **options)


def measure(name: str, turns: int) -> tuple[list[str], list[str]]:
    """Return a case's rows of the table, and what became of its target."""
    case = CASES[name]
    x, y, x_test, y_test = case.load()
    narrow = x.astype(np.float32)
    contenders = {
        "scikit-learn, float64": (theirs(case), x),
        "twolayer, float64": (ours(case), x),
        "twolayer, float64 read by float32": (ours(case, precision="float32"), x),
        "scikit-learn, float32": (theirs(case), narrow),
        "twolayer, float32": (ours(case), narrow),
        "twolayer, bfloat16": (ours(case, precision="bfloat16"), narrow),
    }
    for estimator, inputs in contenders.values():
        estimator.fit(inputs, y)
    curves = [contenders[f"{program}, float64"][0].loss_curve_ for program in ("twolayer", "scikit-learn")]
    deviation = np.max(np.abs(np.divide(*curves) - 1))
    assert deviation < SAME_LOSS, f"{name}: losses differ by {deviation}"

    seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(turns):
        for contender, (estimator, inputs) in contenders.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            estimator.fit(inputs, y)
            seconds[contender].append(time.perf_counter() - start)
    medians = {contender: statistics.median(times) for contender, times in seconds.items()}
    rows = []
    for contender, (estimator, inputs) in contenders.items():
        against_64 = medians["scikit-learn, float64"] / medians[contender]
        against_32 = medians["scikit-learn, float32"] / medians[contender]
        score = estimator.score(x_test.astype(inputs.dtype), y_test)
        cells = (f"{1e3 * medians[contender] / estimator.n_iter_:.3g}", f"{against_64:.2f}", f"{against_32:.2f}")
        rows.append(f"| {name} | {contender} | {estimator.n_iter_} | {' | '.join(cells)} | {score:.4f} |")
    verdicts = []
    for precision in ("float64", "float32") if case.target else ():
        faster = medians[f"scikit-learn, {precision}"] / medians[f"twolayer, {precision}"]
        reached = "reached" if faster >= case.target else "not reached"
        verdicts.append(f"{name}, both in {precision}: {faster:.2f} ×, of {case.target} asked: {reached}")
    return rows, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    warnings.simplefilter("ignore")  # that epochs were too few
    info = twolayer.info()
    print(f"{info['cpu']}, {info['threads']} threads, {info['isa']['in_use']}; medians of {arguments.turns} fits\n")
    print("| case | program | epochs | ms per epoch | × scikit-learn float64 | × scikit-learn float32 | test score |")
    print("| :-- | :-- | --: | --: | --: | --: | --: |")
    verdicts: list[str] = []
    for name in arguments.cases or CASES:
        try:
            rows, verdict = measure(name, arguments.turns)
            print(*rows, sep="\n", flush=True)
            verdicts += verdict
        except DatasetNotFoundError as error:
            verdicts.append(f"{name}: not measured: {str(error).splitlines()[0]}")
    print("", *verdicts, sep="\n")


if __name__ == "__main__":
    main()
