"""The benchmark on a GPU, run on emulated kernels: every case, the files that it leaves, and what it says is wrong."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import torch

from twolayer import _native
from twolayer.bench.gpu import __main__ as program
from twolayer.bench.gpu import cases, programs, report, training
from twolayer.bench.gpu.clock import Clock
from twolayer.bench.targets import TARGETS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.sh"
CASE_TARGETS = {name for name in TARGETS if name.startswith("gpu-")}


def run(folder, *arguments):
    return program.main(["--device", "cpu", "--quick", "--out", str(folder), "--name", "test", *arguments])


@pytest.fixture
def plan():
    return cases.Plan.quick("cpu")


def test_all_cases_leave_json_and_markdown(emulated, tmp_path, capsys):
    assert run(tmp_path) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "gpu-test.json").read_text())
    assert list(found["cases"]) == list(cases.CASES)
    assert found["machine"]["gpu"] == "none: cpu"
    verdicts = [verdict for case in found["cases"].values() for verdict in case["verdicts"]]
    assert {verdict["target"] for verdict in verdicts} == CASE_TARGETS
    assert all(verdict["value"] is not None for verdict in verdicts)
    page = (tmp_path / "gpu-test.md").read_text()
    printed = capsys.readouterr().out
    for case in found["cases"].values():
        assert case["rows"]
        assert f"## {case['title']}" in page
        assert case["title"] in printed
    assert "torch.compile, 64 × 784-100-10: RuntimeError: the time for compiling is used up" in page


def test_a_row_of_the_sweep_has_both_ways_and_the_choice(emulated, plan):
    result = cases.sweep(plan)
    assert {row["task"] for row in result.rows} == {"forward", "backward"}
    assert {row["chosen"] for row in result.rows} == {"ours", "cuBLAS"}  # by the number of outputs
    for row in result.rows:
        assert row["lost"] == row[row["chosen"]] / min(row["ours"], row["cuBLAS"])
    assert len([note for note in result.notes if note.startswith("narrow, ")]) == 2


def test_the_limit_that_would_have_been_best():
    rows = [{"work": work, "ours": work, "cuBLAS": 50 + work / 2} for work in (10, 40, 90, 160, 250)]  # equal at 100
    assert cases.best_limit(rows) == (90, 1)
    assert cases.best_limit([{"work": 10, "ours": 2, "cuBLAS": 1}]) == (0, 1)
    mixed = [{"work": 10, "ours": 2, "cuBLAS": 1}, {"work": 20, "ours": 1, "cuBLAS": 8}]
    assert cases.best_limit(mixed) == (20, pytest.approx(2**0.5))


def test_a_call_in_a_graph_is_one_of_some_and_a_way_costs_the_mean_of_both(monkeypatch):
    class Fake(Clock):
        def _seconds(self, run, count):
            return count * run() * 1e-6

    monkeypatch.setattr(cases, "captured", lambda way, times: lambda: times * way() / 2)  # of which half is the host's
    us = {"ours": 8, "cuBLAS": 5000}
    found = cases._in_graphs(Fake("cpu"), {name: lambda us=us[name]: us for name in us}, us)
    assert found == pytest.approx({"ours in a graph": 4, "cuBLAS in a graph": 2500})
    assert cases._cost({**us, **found}, "ours") == pytest.approx(32**0.5)
    assert cases._cost(us, "ours") == 8


def test_both_ways_of_the_sweep_compute_the_same(emulated, plan):
    net = programs.Net("step", (6, 5, 7, 3), "float64", "relu")
    for ways in cases._both_ways(_native.get_cuda(), plan, net).values():
        ours, cublas = (way() for way in ways.values())
        ours, cublas = ([ours], [cublas[0]]) if isinstance(ours, torch.Tensor) else (ours, cublas)
        torch.testing.assert_close([t for t in ours if t is not None], [t for t in cublas if t is not None])


def test_wrong_results_are_not_timed(emulated, plan, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(programs.TwoLayerNet, "forward", lambda self, x: 2 * super(type(self), self).forward(x))
    contest = programs.Contest(programs.Net("infer", (4, 5, 6, 3)), "cpu", 0, seed=0)
    assert list(contest.calls(("torch eager", "twolayer"))) == ["torch eager"]
    assert contest.left_out["twolayer"].startswith("ArithmeticError: wrong: relative error 1.0e+00")
    assert run(tmp_path, "inference") == 1
    assert "left out: twolayer, 1 × 784-100-10 float32: ArithmeticError: wrong" in capsys.readouterr().out


def test_a_run_that_trains_wrongly_is_not_timed(emulated, plan, monkeypatch):
    monkeypatch.setattr(training, "LR", 100 * training.LR)  # of torch's loops alone
    problem = training._problem(plan)
    monkeypatch.setattr(training, "_problem", lambda plan: dataclasses.replace(problem, lr=training.LR / 100))
    result = training.fit(plan)
    left_out = {row["program"]: row["left_out"] for row in result.rows if "left_out" in row}
    assert left_out.keys() == {training.EAGER, training.GRAPHED}
    assert left_out[training.EAGER].startswith("ArithmeticError: wrong: the first epoch's loss is off by ")
    values = {verdict.target: verdict.value for verdict in result.verdicts}
    assert values["gpu-fit-step"] > 0 and values["gpu-fit-many"] > 0
    assert values["gpu-fit-eager"] is values["gpu-fit-graph"] is None


def test_programs_compute_outputs_and_gradients(emulated):
    contest = programs.Contest(programs.Net("step", (4, 5, 6, 3), "float64", "gelu"), "cpu", 60, seed=0)
    calls = contest.calls(("twolayer", "torch eager"))
    assert [tuple(t.shape) for t in calls["twolayer"]()] == [(4, 3), (6, 5), (6,), (3, 6), (3,)]
    assert max(contest.errors.values()) < 1e-12


@pytest.mark.parametrize("sizes", [(64, 784, 100, 10), (256, 1024, 512, 2), (1000, 32, 16, 4), (1, 8, 64, 2)], ids=str)
def test_no_rounding_decides_on_which_side_of_its_kink_relu_is(sizes):
    nets = [programs.Net("step", sizes, precision, "relu") for precision in ("float64", "float32", "bfloat16")]
    exact, single, half = (programs.Contest(net, "cpu", 0, seed=0) for net in nets)
    hidden = exact.plain[0](exact.x)
    for contest in (single, half):
        assert torch.equal(contest.x.double(), exact.x)
        weight, bias = contest.plain[0].weight.double(), contest.plain[0].bias.double()
        assert torch.equal(torch.nn.functional.linear(exact.x, weight, bias), hidden)
    assert torch.equal(single.plain[0](single.x).double(), hidden)
    assert hidden.abs().min() >= 2.0**-12
    assert 0.3 < hidden.std() < 0.9
    for contest, bound in ((single, 1e-6), (half, 1e-2)):
        contest.calls(("torch eager",))
        assert contest.errors["torch eager"] < bound


def test_tf32_is_as_the_net_says_and_then_as_before():
    before = torch.backends.cuda.matmul.allow_tf32
    for precision, allowed in (("tf32", True), ("float32", False)):
        with programs.tf32_as(programs.Net("step", (1, 1, 1, 1), precision)):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_turns_go_round_and_are_long_enough():
    order = []

    class Fake(Clock):
        def _seconds(self, run, count):
            run()
            order.append((run(), count))
            return count * {"a": 1e-4, "b": 1e-2}[run()]

    timings = Fake("cpu", turns=3, turn_seconds=1e-3).compare({"a": lambda: "a", "b": lambda: "b"})
    assert timings["a"] == pytest.approx((100, 100, 100))
    assert timings["b"] == pytest.approx((1e4, 1e4, 1e4))
    timed = [(name, count) for name, count in order[-12:] if count > 1 or name == "b"]
    assert [name for name, _ in order[-12:]] == ["a", "a", "b", "b"] * 3
    assert ("a", 10) in timed


def test_no_case_starts_when_the_time_is_up(emulated, tmp_path, capsys):
    run(tmp_path, "--seconds", "0", "errors")
    assert "errors: left out, 0 s have passed" in capsys.readouterr().out


def test_a_failing_case_leaves_the_others(emulated, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(cases.CASES, "step", lambda plan: 1 / 0)
    assert run(tmp_path, "step", "inference") == 1
    assert "step: FAILED: ZeroDivisionError" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "gpu-test.json").read_text())["cases"]) == ["inference"]


def test_an_unknown_case_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "steps")
    assert "unknown case steps; there are fit, step, inference" in capsys.readouterr().err


def test_without_a_gpu_it_says_why(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(_native, "_cuda_found", (None, "torch can use no GPU"))
    assert program.main(["--out", str(tmp_path)]) == 1
    assert "nothing is measured: twolayer's CUDA library is not loaded: torch can use no GPU" in capsys.readouterr().err


def test_files_are_called_after_the_gpu():
    assert report.short_name({"gpu": "NVIDIA H100 80GB HBM3"}) == "h100-80gb-hbm3"
    assert report.short_name({"gpu": "NVIDIA H200"}) == "h200"


START = 'SECONDS=$1; source "$2"'  # as if it had run for so long


@pytest.fixture
def check(tmp_path):
    """Run gpu_check.sh with a Python of which each call is written down, and fails if it holds one of these words."""

    def run(*failing, sanitizer=None, spent=0):
        calls, programs = tmp_path / "calls", tmp_path / "bin"
        programs.mkdir()
        words = " || ".join(f'[[ "$*" == *"{word}"* ]]' for word in failing) or "false"
        scripts = {"python3": f'echo "$*" >>{calls}; if {words}; then exit 3; fi; echo 90a', "nvidia-smi": "echo a GPU"}
        if sanitizer is not None:
            scripts["compute-sanitizer"] = f'echo "compute-sanitizer $*" >>{calls}; {sanitizer}'
        for name, text in scripts.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        path = f"{programs}:/usr/bin:/bin"
        env = {"PATH": path, "CUDA_HOME": str(tmp_path), "OUT": str(tmp_path / "results")}
        command = ["bash", "-c", START, "bash", str(spent), SCRIPT]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, calls.read_text().splitlines()

    return run


def test_the_script_builds_tests_and_measures(check):
    code, printed, calls = check()
    assert code == 0, printed
    assert "build for sm_90a" in printed
    steps = ["pytest-timeout", "get_device_capability", "pip install", "cuda_state", "pytest", "bench.gpu --out"]
    assert [step for step, call in zip(steps, calls, strict=True) if step in call] == steps
    assert "memcheck: SKIPPED, there is no compute-sanitizer" in printed
    assert printed.rstrip().endswith("failed: nothing")


def test_the_script_goes_on_after_a_failure_and_tells_it(check):
    code, printed, calls = check("-m pytest")
    assert code == 1
    assert calls[-1].endswith("--seconds 180")
    assert printed.rstrip().endswith("failed: tests")


@pytest.mark.parametrize("step", ["get_device_capability", "pip install", "cuda_state"])
def test_the_script_ends_where_there_is_nothing_to_run(step, check):
    code, _, calls = check(step)
    assert code == 1
    assert step in calls[-1]


def test_the_script_gives_steps_the_time_that_is_left(check):
    code, printed, calls = check(spent=400)
    assert code == 0, printed
    assert 90 <= int(calls[-1].split()[-1]) <= 100  # of --seconds


def test_the_script_starts_nothing_when_the_time_is_up(check):
    code, printed, calls = check(spent=560)
    assert code == 1
    assert "build for sm_90a: NOT RUN, no time is left" in printed
    assert "get_device_capability" in calls[-1]


def test_the_script_runs_the_sanitizer_twice(check, tmp_path):
    code, printed, calls = check(sanitizer='until [[ $1 == python3 ]]; do shift; done; exec "$@"')
    assert code == 0, printed
    sanitizers = [call for call in calls if call.startswith("compute-sanitizer")]
    assert [call.split()[2] for call in sanitizers] == ["memcheck", "racecheck"]
    assert all("--kernel-name kns=twolayer" in call for call in sanitizers)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"gpu-memcheck.log", "gpu-racecheck.log"}
    assert len([call for call in calls if call.startswith("-m pytest") and "test_table" in call]) == 2


def test_the_script_tells_what_the_sanitizer_finds(check):
    code, printed, _ = check(sanitizer="echo Invalid read; exit 9")
    assert code == 1
    assert "Invalid read" in printed
    assert printed.rstrip().endswith("failed: memcheck racecheck")


def test_the_script_passes_over_a_sanitizer_that_cannot_work(check):
    code, printed, _ = check(sanitizer="echo Device not supported; exit 1")
    assert code == 0, printed
    assert printed.count("SKIPPED, compute-sanitizer cannot work") == 2
