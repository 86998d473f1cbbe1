"""A whole run in one launch of one cluster of blocks: layouts, copies, numbers, and what is left to graphs.

A net is small here and the emulated device's shared memory too, so that it is spread over several blocks.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any, NamedTuple

import emulation
import numpy as np
import pytest
import torch
from cases import BFLOAT16_ROUNDING_BOUND, SMALL_EPS, TRAINING_BOUNDS, relative_error
from device_engine import DeviceEngine, emulated_device
from test_engine_options import EVERYTHING, Data, Run, every_run, make_data, read_arrays

from twolayer import _core
from twolayer.reference.engine import NAMES, ReferenceEngine
from twolayer.reference.numpy import permutation
from twolayer.registry import OPTIMIZERS

BOUND = TRAINING_BOUNDS[torch.float32]
LITTLE = 60_000  # bytes of a block's shared memory, where a net of some hundred weights needs several blocks


class Outcome(NamedTuple):
    ended: bool
    arrays: dict[str, Any]  # losses, parameters and states
    steps: int
    blocks: int | None = None  # of a launch, where they are counted


def take_steps(
    engine: Any, run: Run, data: Data, *, scaling: tuple[float, float] = (1.0, 0.0), stop: bool = True, cuts=()
) -> Outcome:
    """One epoch, a call of ``run`` for each piece between the cuts."""
    engine.load(data.parameters)
    steps = -(-run.rows // run.batch_size)
    order, lr, losses = permutation(run.rows, 3, 0), run.lr(steps), np.full(steps, np.nan)
    rows = (data.x, data.y, data.row_weight, data.class_weight, *scaling, order, run.batch_size)
    ended = False
    for first, end in zip((0, *cuts), (*cuts, steps), strict=True):
        ended = engine.run(*rows, first, lr[first:end], losses[first:end], stop, None)
    arrays = {"losses": losses, **read_arrays(engine.store, data.parameters, "")}
    trained = tuple(None if name in run.frozen else p for name, p in zip(NAMES, data.parameters, strict=True))
    for index, state in enumerate(OPTIMIZERS[run.optimizer].states):
        if engine.keeps_state(index):
            arrays |= read_arrays(functools.partial(engine.store_state, index), trained, f"{state} of ")
    return Outcome(ended, arrays, engine.steps)


def in_cluster(make: Any, run: Run, data: Data, **how: Any) -> Outcome:
    """The run in one launch for each piece; only an old GPU may take another way."""
    module, device = make.args
    fresh = make("float32", run.config())
    if device != "cpu":
        return take_steps(fresh, run, data, **how)
    library = ctypes.CDLL(module.__spec__.origin)
    emulation.take_counts(library)
    outcome = take_steps(fresh, run, data, **how)
    counts = emulation.take_counts(library)
    assert fresh.path == "cluster"
    assert counts.launches == counts.clusters
    return outcome._replace(blocks=counts.blocks // counts.launches)


def exactly(run: Run, data: Data, **how: Any) -> Outcome:
    """The run in float64 on the same numbers."""

    def wide(array):
        return array.astype(np.float64) if array is not None and array.dtype == np.float32 else array

    parameters = tuple(map(wide, data.parameters))
    exact = Data(data.x, wide(data.y), wide(data.row_weight), wide(data.class_weight), parameters)
    return take_steps(ReferenceEngine(run.config()), run, exact, **how)


def assert_close(outcome: Outcome, expected: Outcome, bound: float = BOUND) -> None:
    assert outcome.ended == expected.ended
    assert outcome.steps == expected.steps
    assert outcome.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        if array.any():
            # A state may be all rounding of what has cancelled out in a gradient.
            assert relative_error(outcome.arrays[name], array) <= (10 * bound if " of " in name else bound), name
        else:
            np.testing.assert_array_equal(outcome.arrays[name], array, err_msg=name)


def assert_same_bits(outcome: Outcome, expected: Outcome) -> None:
    assert outcome.ended == expected.ended
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(outcome.arrays[name], array, err_msg=name)


@pytest.fixture
def crowded(cuda_engine):
    """``cuda_engine``; the emulated device's blocks have little shared memory."""
    module, device = cuda_engine.args
    if device != "cpu":
        yield cuda_engine
        return
    with emulated_device(module, shared_bytes=LITTLE):
        yield cuda_engine


# Layouts


def plain(batch: int, *sizes: int, rows: int | None = None, **options: Any) -> Run:
    """A run of two batches and one of a single row."""
    rows = 2 * batch + 1 if rows is None else rows
    return Run(inputs="float32", sizes=sizes, rows=rows, batch_size=batch, **{"activation": "gelu", **options})


LAYOUTS = {  # blocks, as unit groups × column groups
    (1, "1 × 1"): [plain(1, 5, 1, 1), plain(7, 20, 33, 10), plain(64, 8, 70, 16), plain(16, 33, 70, 17)],
    (2, "2 × 1"): [plain(1, 150, 33, 10), plain(7, 33, 100, 1)],
    (2, "1 × 2"): [plain(300, 20, 1, 40)],
    (4, "4 × 1"): [plain(64, 70, 70, 40), plain(1, 101, 70, 40), plain(64, 8, 300, 5)],
    (4, "2 × 2"): [
        plain(300, 20, 33, 1),
        plain(128, 90, 50, 17, optimizer="adam", options={"amsgrad": True, "eps": SMALL_EPS}),
    ],
    (4, "1 × 4"): [plain(64, 203, 33, 17), plain(300, 150, 1, 1)],
    (8, "8 × 1"): [plain(7, 203, 150, 1), plain(1, 203, 70, 40)],
    (8, "4 × 2"): [plain(128, 36, 70, 40, rows=129)],
    (8, "1 × 8"): [plain(64, 300, 1, 16), plain(7, 300, 33, 40), plain(1, 784, 33, 10)],
    (16, "8 × 2"): [plain(64, 203, 150, 40, rows=65)],
    (16, "4 × 4"): [plain(33, 300, 70, 10), plain(64, 784, 100, 10, rows=65)],
    (16, "2 × 8"): [plain(64, 784, 100, 10, rows=65, options={"momentum": 0.9})],
}
of_every_layout = pytest.mark.parametrize(
    ("blocks", "run"),
    [(blocks, run) for (blocks, _), runs in LAYOUTS.items() for run in runs],
    ids=[
        f"{blocks} = {grid}: {run.batch_size}-{'-'.join(map(str, run.sizes))}"
        for (blocks, grid), runs in LAYOUTS.items()
        for run in runs
    ],
)


@of_every_layout
def test_every_layout_follows_the_exact_run(blocks, run, cuda_engine):
    data = make_data(run, np.float32)
    outcome = in_cluster(cuda_engine, run, data)
    assert outcome.blocks in (blocks, None)
    assert_close(outcome, exactly(run, data))


# Copies of rows: some at a time as large as addresses and widths allow

WIDTHS = {"float32": (32, 34, 33), "float64": (32, 33), "bfloat16": (40, 36, 34, 33), "uint8": (48, 40, 36, 34, 33)}


@pytest.mark.parametrize("scaling", [(1 / 64, 0.0), (1 / 64, -0.1), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize(("inputs", "width"), [(kind, width) for kind, widths in WIDTHS.items() for width in widths])
def test_rows_of_every_kind(inputs, width, scaling, crowded):
    run = dataclasses.replace(plain(20, width, 20, 10), inputs=inputs)
    scaling = (1 / 255, 0.0) if inputs == "uint8" and scaling == (1.0, 0.0) else scaling
    data = make_data(run, np.float32)
    assert_close(in_cluster(crowded, run, data, scaling=scaling), exactly(run, data, scaling=scaling))


@pytest.mark.parametrize("apart", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_where_rows_lie_makes_no_difference(first, apart, crowded):
    run = plain(20, 40, 20, 10)
    data = make_data(run, np.float32)
    expected = in_cluster(crowded, run, data)
    placed = crowded("float32", run.config())._placed(data.x)
    wide = torch.full((run.rows * (40 + apart) + first,), torch.nan, device=placed.device)
    x = wide[first:].view(run.rows, 40 + apart)[:, :40]
    x.copy_(placed)
    assert_same_bits(in_cluster(crowded, run, dataclasses.replace(data, x=x)), expected)


# Options


def spread(run: Run, **changes: Any) -> Run:
    """Its options on rows and a net that take several blocks, but for the one that no cluster takes."""
    options = {**run.options, "clip_norm": 0.0}
    if "eps" in OPTIMIZERS[run.optimizer].options:
        options = {"eps": SMALL_EPS, **options}
    own = {"inputs": "float32", "sizes": (33, 9, 17), "rows": 67, "batch_size": 33}
    return dataclasses.replace(run, **{**own, "options": options, **changes})


RUNS = list({str(run): run for run in map(spread, (run for run in every_run() if run.inputs == "float64"))}.values())
NO_EPS = [spread(Run("mse", optimizer, options={"eps": 0.0})) for optimizer in ("adam", "adagrad")]  # padding: 0 / 0


@pytest.mark.parametrize("out", [10, 17])  # a row's outputs, each in a lane, or more than there are lanes
@pytest.mark.parametrize("run", [*RUNS, *NO_EPS], ids=str)
def test_every_option_follows_the_exact_run(run, out, crowded):
    run = dataclasses.replace(run, sizes=(33, 9, out))
    data = make_data(run, np.float32)
    outcome = in_cluster(crowded, run, data)
    assert outcome.blocks != 1
    assert_close(outcome, exactly(run, data))


@pytest.mark.parametrize("run", [run for run in RUNS if not run.frozen][::3], ids=str)
def test_bfloat16_is_rounded_where_the_reference_engine_rounds(run, crowded):
    data, run = make_data(run, np.float32), spread(run, options={**run.options, "bfloat16_compute": True})
    expected = take_steps(ReferenceEngine(run.config()), run, data)
    assert_close(in_cluster(crowded, run, data), expected, BFLOAT16_ROUNDING_BOUND)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("run", [Run(), Run(options=EVERYTHING, weighted=("rows", "classes"))], ids=str)
def test_a_batch_whose_rows_are_all_ignored(run, stop, crowded):
    run = spread(run, options={**run.options, "clip_norm": 0.0, "ignore_index": 2})
    data = make_data(run, np.float32)
    data.y[permutation(run.rows, 3, 0)[33:66]] = 2  # the second batch
    expected = take_steps(_core.EngineFloat32(run.config()), run, data, stop=stop)
    assert (expected.ended, expected.steps) == ((True, 1) if stop else (False, 3))
    assert np.isnan(expected.arrays["losses"][1])
    assert_places_and_values(in_cluster(crowded, run, data, stop=stop), expected)


@pytest.mark.parametrize("options", [{}, {"l1": 0.01, "l2": 0.1}], ids=["plain", "penalised"])
@pytest.mark.parametrize("bad", [0, 1, 3])
def test_a_loss_that_is_not_finite_stops_before_its_update(bad, options, crowded):
    run = spread(Run("mse", "adam", options=options), rows=4 * 33)
    data = make_data(run, np.float32)
    data.y[permutation(run.rows, 3, 0)[33 * bad + 32]] = np.nan
    stopped, finite = (crowded("float32", run.config()) for _ in range(2))
    outcome = take_steps(stopped, run, data)
    assert (outcome.ended, outcome.steps) == (True, bad)
    losses, lr = np.empty(bad), run.lr(4)[:bad]
    finite.load(data.parameters)
    rows = (data.x, data.y, None, None, 1.0, 0.0, permutation(run.rows, 3, 0), 33, 0)
    assert not finite.run(*rows, lr, losses, True, None)
    np.testing.assert_array_equal(outcome.arrays["losses"][:bad], losses)
    for name, array in read_arrays(finite.store, data.parameters, "").items():
        np.testing.assert_array_equal(outcome.arrays[name], array, err_msg=name)


# Numbers that are not finite: products on tensor cores split factors in two, and an infinite one has no parts


def assert_places_and_values(outcome: Outcome, expected: Outcome) -> None:
    """The same numbers are infinite, or none at all, and all others are close."""
    assert (outcome.ended, outcome.steps) == (expected.ended, expected.steps)
    for name, array in expected.arrays.items():
        finite, result = np.isfinite(array), outcome.arrays[name]
        np.testing.assert_array_equal(result[~finite], array[~finite], err_msg=name)
        assert np.isfinite(result[finite]).all(), name
        if array[finite].any():
            assert relative_error(result[finite], array[finite].astype(np.float64)) <= 2 * BOUND, name


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("inputs", ["float32", "bfloat16"])
@pytest.mark.parametrize("number", [np.inf, -np.inf, 1e38, LARGEST, np.nan])
@pytest.mark.parametrize("place", ["x", *NAMES])
def test_a_huge_or_infinite_number(place, number, inputs, activation, loss, crowded):
    run = spread(Run(loss, activation=activation), inputs=inputs)
    data = make_data(run, np.float32)
    array = dict(zip(("x", *NAMES), (data.x, *data.parameters), strict=True))[place]
    array[(4, 7)[: array.ndim]] = number
    expected = take_steps(_core.EngineFloat32(run.config()), run, data, stop=False)
    outcome = in_cluster(crowded, run, data, stop=False)
    assert outcome.blocks != 1
    assert_places_and_values(outcome, expected)


# The same bits

BITS = spread(Run("mse", "adam", "gelu", {**EVERYTHING, "penalty_per_row": True}, weighted=("rows",)), rows=5 * 33 + 1)


@pytest.mark.parametrize("seed", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "run",
    [BITS, spread(Run(), rows=20 * 33), plain(20, 61, 50, 17)],
    ids=["2 × 2, which meet in every step", "2 × 2", "8 × 2"],
)
def test_the_order_of_blocks_and_threads_makes_no_difference(run, seed, emulated_cuda):
    data, make = make_data(run, np.float32), functools.partial(DeviceEngine, emulated_cuda, "cpu")
    outcomes = []
    for each in (0, seed):
        with emulated_device(emulated_cuda, seed=each, shared_bytes=LITTLE):
            outcomes.append(in_cluster(make, run, data))
    assert outcomes[0].blocks > 1
    assert_same_bits(*outcomes)


@pytest.mark.parametrize("cuts", [(1,), (5,), (2, 3), (1, 2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("bfloat16_compute", [False, True])
def test_however_a_run_is_cut_it_gives_the_same_bits(bfloat16_compute, cuts, crowded):
    run = dataclasses.replace(BITS, options={**BITS.options, "bfloat16_compute": bfloat16_compute})
    data = make_data(run, np.float32)
    assert_same_bits(in_cluster(crowded, run, data, cuts=cuts), in_cluster(crowded, run, data))


# What does not fit


@pytest.mark.parametrize(
    ("run", "dtype"),
    [
        (plain(8, 9, 20, 5, options={"clip_norm": 1.0}), "float64"),
        (plain(8, 9, 20, 5, options={"clip_norm": 1.0}), "float32"),
        (plain(8, 9, 20, 5), "float64"),
        (plain(8, 3000, 500, 5, rows=16), "float32"),
        (plain(2000, 9, 20, 5, rows=2001), "float32"),
        (plain(4097, 1, 1, 1, rows=4097), "float32"),
    ],
    ids=["clip_norm and float64", "clip_norm", "float64", "net", "batch", "large batch"],
)
def test_what_one_cluster_does_not_hold_is_launched_as_graphs(run, dtype, cuda_engine):
    data = make_data(run, np.float32)
    fresh = cuda_engine(dtype, run.config())
    wide = dataclasses.replace(data, parameters=tuple(p.astype(dtype) for p in data.parameters))
    outcome = take_steps(fresh, run, wide)
    assert fresh.path == "graph"
    assert_close(outcome, exactly(run, data))


def test_sizes_alone_decide(emulated_cuda):
    def paths(first_step=0, steps=3, number=1.0, gap=0, order=None):
        found = []
        for hidden in range(12, 100, 8):
            run = plain(20, 33, hidden, 10)
            data, fresh = make_data(run, np.float32), DeviceEngine(emulated_cuda, "cpu", "float32", run.config())
            x = np.zeros((run.rows, 33 + gap), np.float32)[:, gap:]
            x[:] = number * data.x
            fresh.load(data.parameters)
            rows = (x, data.y, None, None, 1.0, 0.0, order, run.batch_size, first_step)
            fresh.run(*rows, np.full(steps, 0.1), np.empty(steps), False, None)
            found.append(fresh.path)
        return found

    with emulated_device(emulated_cuda, shared_bytes=LITTLE):
        expected = paths()
        assert set(expected) == {"cluster", "graph"}
        assert paths(steps=1) == expected
        assert paths(first_step=2, steps=1) == expected  # a batch of one row
        assert paths(number=np.inf) == expected
        assert paths(gap=3) == expected
        assert paths(order=permutation(41, 1, 1)) == expected
    with emulated_device(emulated_cuda, shared_bytes=LITTLE, seed=1, multiprocessors=2):
        assert paths() == expected
