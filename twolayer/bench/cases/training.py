"""``fit`` against the same training by other libraries, on the tutorial's two tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..contest import Contest, compare_to
from ..document import CaseResult, Row
from ..workloads import MNIST_ROWS, Workload

LAYERS = (784, 100, 10)
BATCHES = 234  # 47 MB of float32 inputs, more than most caches hold
DIGITS = Workload("fit", LAYERS, 64, BATCHES, data="digits", lr=1e-4, pool=MNIST_ROWS)
DENSE = Workload("fit", LAYERS, 64, BATCHES)
EAGER = ("torch eager", "nn.Linear loop")


def digits(contest: Contest, result: CaseResult, quick: bool) -> None:
    """Raw pixels, four fifths of them zeros."""
    rows, density = _against_all(contest, result, DIGITS, quick)
    linear = compare_to(rows, "nn.Linear loop")
    result.notes.append(f"{density:.1%} of the inputs are not zero.")
    _judge(result, "digits-linear", linear)
    _judge(result, "digits-jax", result.best("JAX scan"))


def dense(contest: Contest, result: CaseResult, quick: bool) -> None:
    """Inputs without zeros."""
    rows, _ = _against_all(contest, result, DENSE, quick)
    compare_to(rows, *EAGER)
    ours = result.best("twolayer.fit", threads=max(contest.thread_counts))
    share = ours.share_of_limit if ours else None
    result.judge("dense-peak", 100 * share if share else None, f"on {max(contest.thread_counts)} threads")
    _judge(result, "dense-eager", result.best(EAGER))
    _judge(result, "dense-jax", result.best("JAX scan"))


def _against_all(contest: Contest, result: CaseResult, workload: Workload, quick: bool) -> tuple[list[Row], float]:
    """Every library on the workload; the rows, and the share of inputs that is not zero."""
    if quick:
        workload = dataclasses.replace(workload, batches=BATCHES // 4, pool=0)
    problem = workload.problem(contest.seed)
    density = float(np.mean(problem.x[: workload.rows] != 0))
    result.notes.append(f"Data: {problem.data}, {workload.rows:,} rows.")
    contenders = contest.contenders(result, "twolayer.fit", *EAGER, "JAX scan")
    all_cores = [max(contest.thread_counts)]
    others = ("NumPy", "scikit-learn") if quick else ("torch.compile", "NumPy", "scikit-learn")
    contenders += contest.contenders(result, *others, threads=all_cores)
    return contest.run(result, workload, contenders, density=density), density


def _judge(result: CaseResult, target: str, peer: Row | None) -> None:
    """Hold ``fit``'s best time against the peer's."""
    ours = result.best("twolayer.fit")
    if ours is None or peer is None or not ours.us or not peer.us:
        result.judge(target, None, "not measured")
    else:
        result.judge(
            target, peer.us / ours.us, f"over {peer.implementation}, {peer.threads} threads, {peer.us:,.0f} µs"
        )


def bfloat16(contest: Contest, result: CaseResult, quick: bool) -> None:
    """Products of bfloat16 numbers against those of float32 ones."""
    contenders = contest.contenders(result, "twolayer.fit", "twolayer.fit bfloat16")
    rows = contest.run(result, DENSE, contenders)
    compare_to(rows, "twolayer.fit")
    threads = max(contest.thread_counts)
    short = result.best("twolayer.fit bfloat16", threads=threads)
    whole = result.best("twolayer.fit", threads=threads)
    ratio = whole.us / short.us if short and whole and short.us and whole.us else None
    result.judge("bfloat16", ratio, f"on {threads} threads")


def regression(contest: Contest, result: CaseResult, quick: bool) -> None:
    """One batch over and over, in float32 and float64."""
    for dtype in ("float32", "float64"):
        workload = Workload(
            "fit", (1000, 100, 10), 64, data="regression", activation="relu", loss="mse_sum", lr=1e-6, dtype=dtype
        )
        names = ("twolayer.fit", "torch autograd", "torch eager", "NumPy by hand")
        contenders = contest.contenders(result, *names)
        contenders += contest.contenders(result, "JAX scan", threads=[max(contest.thread_counts)])
        rows = contest.run(result, workload, contenders, cell={"dtype": dtype}, repeats=100 if quick else 500)
        compare_to(rows, "torch autograd")
    for target, peer, dtype in (
        ("regression-torch", "torch autograd", "float32"),
        ("regression64-numpy", "NumPy by hand", "float64"),
        ("regression64-torch", "torch autograd", "float64"),
    ):
        ours, theirs = result.best("twolayer.fit", dtype=dtype), result.best(peer, dtype=dtype)
        ratio = theirs.us / ours.us if ours and theirs and ours.us and theirs.us else None
        result.judge(target, ratio, f"over {peer}, {theirs.threads} threads" if theirs else "")


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {},
    "momentum SGD": {"momentum": 0.9},
    "Adam": {"optimizer": "adam", "lr": 1e-3},
}


def optimizers(contest: Contest, result: CaseResult, quick: bool) -> None:
    """What the update costs. Pixels are scaled: Adam divides raw ones' tiny gradients by their own size."""
    costs = []
    threads = max(contest.thread_counts)
    for name, base in (("digits", dataclasses.replace(DIGITS, pool=0, scale=1 / 255, lr=0.01)), ("dense", DENSE)):
        plain = None
        for update, options in OPTIMIZERS.items():
            workload = dataclasses.replace(base, **options)
            contenders = contest.contenders(result, "twolayer.fit", threads=[threads])
            (row,) = contest.run(result, workload, contenders, cell={"inputs": name, "optimizer": update})
            plain = plain or row
            if row.us and plain.us:
                row.peer, row.speedup = "SGD", plain.us / row.us
                costs.append((row.us / plain.us, f"{update}, {name}"))
    worst = max(costs, default=(None, "not measured"))
    result.judge("optimizer-cost", *worst)


def threads(contest: Contest, result: CaseResult, quick: bool) -> None:
    """The same training on one thread and on two."""
    rows = contest.run(result, DENSE, contest.contenders(result, "twolayer.fit"))
    one = result.best("twolayer.fit", threads=1)
    for row in rows:
        if one and one.us and row.us:
            row.peer, row.speedup = "one thread", one.us / row.us
    two = result.best("twolayer.fit", threads=2)
    result.judge("threads", two.speedup if two else None, "" if two else "there is one core only")


def many(contest: Contest, result: CaseResult, quick: bool) -> None:
    """Eight nets at once on all threads against one after the other on one; times are of a step of each."""
    ratios = []
    for name, workload in (("digits", dataclasses.replace(DIGITS, pool=0)), ("dense", DENSE)):
        contenders = contest.contenders(result, "8 × twolayer.fit", threads=[1])
        contenders += contest.contenders(result, "twolayer.fit_many", threads=[max(contest.thread_counts)])
        rows = contest.run(result, workload, contenders, cell={"inputs": name})
        compare_to(rows, "8 × twolayer.fit")
        for row in rows:
            row.limit_us = None  # it is one net's
        if speedup := rows[-1].speedup:
            ratios.append((speedup, f"least of two, {name}"))
    if len(contest.thread_counts) < 2:
        result.judge("many", None, "there is one core only")
    else:
        result.judge("many", *min(ratios, default=(None, "not measured")))
