"""The benchmark: nothing wrong is timed, turns alternate, and what a run leaves says on what it was measured."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twolayer import cli
from twolayer._native import core
from twolayer.bench import document, limits, plots, report, timing, verify
from twolayer.bench.cases import CASES
from twolayer.bench.contest import Contest, Effort, compare_to
from twolayer.bench.document import CaseResult, Row
from twolayer.bench.implementations import IMPLEMENTATIONS, Implementation, Program
from twolayer.bench.targets import TARGETS
from twolayer.bench.workers import Workers
from twolayer.bench.workloads import Workload
from twolayer.cli.bench import CASE_NAMES
from twolayer.programs.numpy_loop import numpy_program
from twolayer.programs.problem import Calls, Problem, Train, Weights

NO_LIMITS: dict[str, Any] = {"isa": None, "gflops": {}, "reads": []}
SMALL = Workload("fit", (12, 20, 3), 8, 4, lr=0.1)
needs_core = pytest.mark.skipif(core is None, reason="the native library is not loaded")


# ---------------------------------------------------------------------------------------------------------------------
# Programs that are wrong, each in its way; worker processes import them from here.


def slow_learner(problem: Problem, start: Weights) -> Train:
    """Updates by 99 % of what it should."""
    return numpy_program("float32")(dataclasses.replace(problem, lr=0.99 * problem.lr), start)


def not_a_number(problem: Problem, start: Weights) -> Calls:
    return Calls(lambda count: None, lambda: {"y": np.full((len(problem.x), problem.layers[2]), np.nan)})


def wrong_shape(problem: Problem, start: Weights) -> Calls:
    return Calls(lambda count: None, lambda: {"y": np.zeros((1, 1))})


def nothing(problem: Problem, start: Weights) -> Calls:
    return Calls(lambda count: None, dict)


def raises(problem: Problem, start: Weights) -> Calls:
    raise RuntimeError("no luck")


def exits(problem: Problem, start: Weights) -> Calls:
    sys.exit(3)


@pytest.fixture
def contest() -> Any:
    with Workers() as workers:
        yield Contest(workers, NO_LIMITS, Effort(turns=2, turn_seconds=0.001, budget=1.0), [1])


def add(monkeypatch: pytest.MonkeyPatch, name: str, task: str) -> None:
    """Let the program of this module called ``name`` take part."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(IMPLEMENTATIONS, name, Implementation(name, {task: Program(f"test_bench:{name}")}, "numpy"))


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("slow_learner", "fit", "wrong: losses|wrong: change of w1"),
        ("not_a_number", "infer", "wrong: y, of norm .* is off by nan"),
        ("wrong_shape", "infer", r"wrong: y is of shape \(1, 1\), not \(8, 3\)"),
        ("nothing", "infer", "wrong: y is missing"),
        ("raises", "infer", "failed: RuntimeError: no luck"),
        ("exits", "infer", "failed: its process ended with status 3"),
    ],
)
def test_what_is_wrong_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, contest: Contest, name: str, task: str, message: str
) -> None:
    add(monkeypatch, name, task)
    result = CaseResult("a", "a case")
    workload = SMALL if task == "fit" else Workload(task, (12, 20, 3), 8)
    contest.run(result, workload, contest.contenders(result, name))
    (row,) = result.rows
    assert row.us is None
    assert row.error is not None
    assert re.search(message, row.error)


def test_the_right_one_beside_a_wrong_one_is_timed(monkeypatch: pytest.MonkeyPatch, contest: Contest) -> None:
    add(monkeypatch, "slow_learner", "fit")
    result = CaseResult("a", "a case")
    contest.run(result, SMALL, contest.contenders(result, "slow_learner", "NumPy"))
    wrong, right = result.rows
    assert wrong.error and wrong.us is None
    assert right.error is None
    assert right.us_least is not None and right.us is not None and right.us_most is not None
    assert 0 < right.us_least <= right.us <= right.us_most
    assert right.turns == 2


@needs_core
@pytest.mark.parametrize("task", ["fit", "forward", "backward", "step", "infer"])
def test_every_implementation_of_ours_passes(contest: Contest, task: str) -> None:
    result = CaseResult("a", "a case")
    names = [name for name, row in IMPLEMENTATIONS.items() if task in row.programs and row.package == "twolayer"]
    workload = SMALL if task == "fit" else Workload(task, (12, 20, 3), 8)
    rows = contest.run(result, workload, contest.contenders(result, *names))
    assert rows
    assert [row.error for row in rows] == [None] * len(rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peers_train_in_the_workloads_dtype(contest: Contest, dtype: str) -> None:
    result = CaseResult("a", "a case")
    workload = Workload(
        "fit", (1000, 100, 10), 64, data="regression", activation="relu", loss="mse_sum", lr=1e-6, dtype=dtype
    )
    names = ("NumPy by hand", "torch eager", "torch autograd", "JAX scan")
    rows = contest.run(result, workload, contest.contenders(result, *names), repeats=1)
    assert [row.error for row in rows] == [None] * len(rows)


def test_data_and_weights_are_new_in_every_run() -> None:
    with Workers() as workers:
        seeds = {Contest(workers, NO_LIMITS, Effort(1, 0, 0), [1]).seed for _ in range(4)}
    assert len(seeds) > 1
    one, other = (SMALL.problem(seed) for seed in (1, 2))
    assert (one.x != other.x).all()
    assert (one.starts[""].w1 != other.starts[""].w1).all()


def test_turns_alternate() -> None:
    order: list[str] = []

    def runner(name: str) -> Any:
        return lambda: order.append(name) or float(len(order))

    found = timing.take_turns({"a": runner("a"), "b": runner("b")}, turns=4, budget=60)
    assert order == ["a", "b"] * 4
    assert found == {"a": [1, 3, 5, 7], "b": [2, 4, 6, 8]}


def test_turns_end_with_the_budget_but_not_before_three() -> None:
    found = timing.take_turns({"a": lambda: 1.0}, turns=50, budget=0)
    assert found == {"a": [1.0] * timing.LEAST_TURNS}


def test_timing_is_the_median_between_least_and_most() -> None:
    assert timing.Timing.of([5.0, 1.0, 2.0]) == (2.0, 1.0, 5.0)


def test_speedups_are_over_the_peers_best_number_of_threads() -> None:
    rows = [Row({}, "ours", 2, us=10.0), Row({}, "peer", 1, us=30.0), Row({}, "peer", 2, us=20.0)]
    best = compare_to([*rows, Row({}, "peer", 3, error="wrong")], "peer")
    assert best is rows[2]
    assert [row.speedup for row in rows] == [2.0, 20 / 30, 1.0]
    assert rows[0].peer == "peer, 2 threads"


def test_a_peer_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, contest: Contest) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "other", Implementation("other", {}, "no_such_package"))
    result = CaseResult("a", "a case")
    assert contest.contenders(result, "other") == []
    assert result.absent == {"other": "no_such_package is not installed"}


# ---------------------------------------------------------------------------------------------------------------------
# The figures beside the times.


def test_flops_are_those_of_the_products() -> None:
    training = Workload("fit", (784, 100, 10), 64)
    assert training.flops() == 64 * (4 * 784 * 100 + 6 * 100 * 10)
    assert Workload("infer", (784, 100, 10), 64).flops() == 64 * 2 * (784 * 100 + 100 * 10)
    assert training.flops(density=0.0) == 64 * 6 * 100 * 10


@needs_core
@pytest.mark.alone
def test_the_machines_limits_are_in_order() -> None:
    found = limits.measure([1], seconds=0.01)
    assert set(found["gflops"]) == set(core.isas_available())
    for by_dtype in found["gflops"].values():
        assert by_dtype["float32"]["1"] > 1.2 * by_dtype["float64"]["1"] > 0
    levels = [read["level"] for read in found["reads"]]
    assert levels[-1] == "memory"
    assert found["reads"][0]["gigabytes"]["1"] > found["reads"][-1]["gigabytes"]["1"] > 0


@needs_core
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("z80", "float32", 1, 0.1), "isa must be one that this machine has; got z80"),
        (("portable", "float16", 1, 0.1), "dtype must be float32, float64 or bfloat16; got float16"),
        (("portable", "bfloat16", 1, 0.1), "isa must be one that multiplies bfloat16; got portable"),
        (("portable", "float32", 0, 0.1), "threads must be at least 1; got 0"),
        (("portable", "float32", 1, float("nan")), "seconds must be above 0"),
    ],
)
def test_the_peak_refuses(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core.multiply_add_gflops(*arguments)


@needs_core
def test_reading_refuses_too_few_bytes() -> None:
    with pytest.raises(ValueError, match="bytes must be at least 4096; got 64"):
        core.read_gigabytes("portable", 64, 1, 0.1)


def test_the_limit_of_a_step_is_arithmetic_or_bandwidth() -> None:
    reads = [{"level": "L1", "holds": 1 << 40, "bytes": 1, "gigabytes": {"1": 1.0}}]
    fast = {"isa": "x", "gflops": {"x": {"float32": {"1": 1e9}}}, "reads": reads}
    slow = {"isa": "x", "gflops": {"x": {"float32": {"1": 1.0}}}, "reads": reads}
    work = Workload("infer", (1000, 100, 10), 64)
    assert limits.seconds_at_limit(fast, work, "float32", 1) == pytest.approx(work.weight_bytes() / 1e9)
    assert limits.seconds_at_limit(slow, work, "bfloat16", 1) == pytest.approx(work.flops() / 1e9)
    assert limits.seconds_at_limit(NO_LIMITS, work, "float32", 1) is None


def test_verification_allows_rounding_and_no_more() -> None:
    problem = SMALL.problem(0)
    start = problem.starts[""]
    exact, slack = verify.truth(problem, start), verify.rounding(problem, start)
    verify.check(exact, exact, "float32", slack)
    for name, array in exact.items():
        with pytest.raises(verify.WrongResult, match=name):
            verify.check({**exact, name: 1.01 * array}, exact, "float32", slack)


def test_targets_are_reached_at_the_bound() -> None:
    assert TARGETS["digits-linear"].reached(15)
    assert not TARGETS["digits-linear"].reached(14.9)
    assert TARGETS["busy"].reached(1.3)
    assert not TARGETS["busy"].reached(1.31)


# ---------------------------------------------------------------------------------------------------------------------
# The command.


def test_the_command_knows_every_case() -> None:
    assert tuple(CASES) == CASE_NAMES


@needs_core
def test_a_quick_run_leaves_what_it_was_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWOLAYER_NUM_THREADS", "2")
    out, file = tmp_path / "out", tmp_path / "figures.json"
    assert cli.main(["bench", "--quick", "threads", "tiny", "--out", str(out), "--json", str(file)]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["machine"]["isa"] == core.isa()
    assert found["machine"]["cpu"]
    assert {"twolayer", "python", "torch", "numpy", "jax"} <= set(found["machine"]["versions"])
    assert found["quick"]
    assert list(found["cases"]) == ["threads", "tiny"]
    rows = [row for case in found["cases"].values() for row in case["rows"]]
    assert {row["threads"] for row in rows} == {1, 2}
    assert all(row["us_least"] <= row["us"] <= row["us_most"] for row in rows)
    verdicts = {verdict["target"]: verdict for case in found["cases"].values() for verdict in case["verdicts"]}
    assert set(verdicts) == {"threads", "tiny"}
    assert verdicts["tiny"]["reached"] == (verdicts["tiny"]["value"] >= 60)
    text = capsys.readouterr().out
    assert "The machine's limits, measured" in text
    assert "asked ≥ 60 ×" in text
    assert "## tiny" in (out / "bench.md").read_text(encoding="utf-8")

    assert cli.main(["bench", "--quick", "startup", "--out", str(out)]) == 0
    kept = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    assert list(kept["cases"]) == ["threads", "tiny", "startup"]
    assert kept["cases"]["tiny"] == found["cases"]["tiny"]


def test_figures_of_another_machine_are_not_mixed_in() -> None:
    assert document.same_machine({"machine": {"cpu": "a"}}, {"machine": {"cpu": "a"}})
    assert not document.same_machine({"machine": {"cpu": "b"}}, {"machine": {"cpu": "a"}})
    assert not document.same_machine({}, {"machine": {"cpu": "a"}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nonsense"], "expected one of digits, dense"),
        (["--json", "no-such-folder/file.json"], "there is no folder no-such-folder"),
    ],
)
def test_wrong_options_are_refused(
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *options])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def sample() -> dict[str, Any]:
    """A document with a row of every kind."""
    result = CaseResult("grid-8", "a grid", absent={"JAX scan": "jax is not installed"}, notes=["A note."])
    for batch in (1, 64):
        cell = {"batch": batch, "in": 8, "hidden": 8}
        result.rows += [
            Row(cell, "twolayer.fit", 2, 1.0, 0.9, 1.2, 3, "torch eager, 1 threads", 100.0, 0.5),
            Row(cell, "torch eager", 1, 100.0, 99.0, 120.0, 3, "torch eager, 1 threads", 1.0, 0.5),
            Row(cell, "nn.Linear loop", 1, error="wrong: y is off"),
        ]
    result.judge("grid-least", 100.0, "batch 1, hidden 8")
    result.judge("grid-mean", None, "not measured")
    dense = CaseResult("dense", "dense", rows=[Row({}, "twolayer.fit", n, 9.0 / n, 8.0, 9.0, 3) for n in (1, 2)])
    widths = CaseResult("widths", "w", rows=[Row({"hidden": n}, "twolayer.fit", 2, n, n, n, 3) for n in (1, 2, 3)])
    found = document.document(NO_LIMITS, [result, dense, widths], quick=False)
    return dict(json.loads(document.as_json(found)))


def test_the_page_tells_of_everything() -> None:
    page = report.as_markdown(sample(), ["time_by_batch.png"])
    for text in ("≥ 1.5 × | 100 × | yes", "| not measured |", "wrong: y is off", "jax is not installed", "A note."):
        assert text in page
    assert "![time by batch](time_by_batch.png)" in page


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    drawn = plots.draw(sample(), tmp_path)
    assert drawn == ["time_by_batch.png", "time_by_hidden.png", "time_by_width.png", "time_by_threads.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in drawn)
    assert plots.draw({**sample(), "cases": {}}, tmp_path) == []


def test_numbers_that_json_has_not_become_null() -> None:
    assert json.loads(document.as_json({"a": [float("nan"), {"b": float("inf")}, 1.0]})) == {
        "a": [None, {"b": None}, 1]
    }
