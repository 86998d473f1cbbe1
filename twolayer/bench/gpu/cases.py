"""What is measured on a GPU."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ... import _cuda_ops, _native
from ..._tensors import IDS, empty_gradients
from .clock import Clock, Run
from .plan import MNIST, Plan, Result
from .programs import COMPILED, EAGER, OURS, PRECISIONS, PROGRAMS, Contest, Net, captured, tf32_as
from .training import fit

WITHOUT_COMPILE = tuple(name for name in PROGRAMS if name != COMPILED)


def _contest(plan: Plan, result: Result, net: Net, programs: tuple[str, ...]) -> dict[str, float]:
    """Verify and time the programs of one net, add a row for each, and return the microseconds of those timed."""
    with tf32_as(net):
        contest = Contest(net, plan.device, plan.compile_seconds, plan.seed)
        timings = plan.clock.compare(contest.calls(programs))
        plan.compile_seconds = contest.compile_seconds
    eager = timings.get(EAGER)
    for name in programs:
        row: dict[str, Any] = {"net": str(net), "task": net.task, "precision": net.precision, "program": name}
        row["error"] = contest.errors.get(name)
        if name in timings:
            median, least, most = timings[name]
            row |= {"us": median, "us_least": least, "us_most": most}
            row["speedup"] = eager.median / median if eager else None
        else:
            row["left_out"] = contest.left_out[name]
        result.rows.append(row)
    return {name: timing.median for name, timing in timings.items()}


def _ratio(times: dict[str, float]) -> float | None:
    return times[EAGER] / times[OURS] if OURS in times and EAGER in times else None


def step(plan: Plan) -> Result:
    """Forward and backward of the tutorial's net."""
    result = Result("Forward and backward of 64 × 784-100-10")
    for precision in ("float32", "tf32", "bfloat16", "float16"):
        programs = PROGRAMS if precision in ("float32", "bfloat16") else WITHOUT_COMPILE
        times = _contest(plan, result, Net("step", MNIST, precision), programs)
        if precision == "float32":
            result.judge("gpu-step", _ratio(times), "float32")
    return result


def inference(plan: Plan) -> Result:
    result = Result("Inference by 784-100-10")
    ratios = {}
    for precision in ("float32", "bfloat16"):
        for batch in plan.batches:
            with_compile = precision == "float32" and batch in (1, 64)
            programs = PROGRAMS if with_compile else WITHOUT_COMPILE
            times = _contest(plan, result, Net("infer", (batch, *MNIST[1:]), precision), programs)
            if precision == "float32" and (ratio := _ratio(times)):
                ratios[batch] = ratio
    worst = min(ratios, key=lambda batch: ratios[batch], default=None)
    result.judge("gpu-infer", ratios[worst] if worst else None, f"batch {worst}" if worst else "not measured")
    return result


def grid(plan: Plan) -> Result:
    """The shapes that the module is held to on the CPU too."""
    result = Result("Nets of all sizes")
    ratios = {}
    for precision in plan.grid_precisions:
        for task in ("step", "infer"):
            for shape in plan.grid:
                net = Net(task, shape, precision)
                if ratio := _ratio(_contest(plan, result, net, WITHOUT_COMPILE)):
                    ratios[f"{task} {precision} {net}"] = ratio
    least = min(ratios, key=lambda name: ratios[name], default=None)
    mean = statistics.geometric_mean(ratios.values()) if ratios else None
    result.judge("gpu-grid-mean", mean, f"{len(ratios)} cells")
    result.judge("gpu-grid-least", ratios[least] if least else None, least or "not measured")
    return result


def memory(plan: Plan) -> Result:
    """Passes and nets that do little arithmetic with each number, against a copy's bandwidth."""
    result = Result("Memory-bound shapes")
    width = 256
    moved, us = _copy(plan, plan.rows * width)
    bandwidth = moved / us / 1e3  # GB/s
    result.rows.append({"what": "a copy", "bytes": moved, "us": us, "gigabytes": bandwidth, "share": 1.0})
    shares = {}
    for what, moved, run in _memory_bound(plan, width):
        us = plan.clock.one(run).median
        rate = moved / us / 1e3
        shares[what] = rate / bandwidth
        result.rows.append({"what": what, "bytes": moved, "us": us, "gigabytes": rate, "share": rate / bandwidth})
    worst = min(shares, key=lambda what: shares[what])
    result.judge("gpu-memory", 100 * shares[worst], worst)
    return result


def _copy(plan: Plan, numbers: int) -> tuple[int, float]:
    """The bytes that a copy of float32 numbers reads and writes, and its microseconds."""
    source = torch.randn(numbers, device=plan.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes, plan.clock.one(lambda: target.copy_(source)).median


def _memory_bound(plan: Plan, width: int) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """What, the bytes that it must move, and a call of it."""
    module: Any = _native.get_cuda()
    for precision in ("float32", "bfloat16"):
        dtype, _ = PRECISIONS[precision]
        tensor: dict[str, Any] = {"device": plan.device, "dtype": dtype}
        z, grad = (torch.randn(plan.rows, width, **tensor) for _ in range(2))
        bias, total = torch.randn(width, **tensor), torch.empty(width, **tensor)
        activate = partial(module.bias_activate, z, bias, None, z, IDS["relu"])
        derive = partial(module.derive_sum, z, grad, total, IDS["relu"])
        yield f"bias and relu, {plan.rows} × {width} {precision}", 2 * z.nbytes, activate
        yield f"relu's derivative and sums, {plan.rows} × {width} {precision}", 3 * z.nbytes, derive
        del z, grad, bias, total, activate, derive
        for task in ("infer", "step"):
            shape = (plan.rows, 32, 16, 4)
            with tf32_as(net := Net(task, shape, precision, "relu")):
                contest = Contest(net, plan.device, 0, plan.seed)
                call = contest.calls((OURS,)).get(OURS)
            if call is None:
                raise RuntimeError(contest.left_out[OURS])
            batch, inputs, hidden, out = shape
            numbers = inputs + out if task == "infer" else 2 * inputs + 2 * out + 2 * hidden  # of a row
            yield f"{task} {net} {precision}", batch * numbers * dtype.itemsize, call


def errors(plan: Plan) -> Result:
    """Ours and eager's against float64, in every precision."""
    result = Result("Relative errors of outputs and gradients, the largest")
    worst: dict[str, float] = {}
    for precision, activation in itertools.product(PRECISIONS, ("relu", "gelu", "sigmoid")):
        for shape in plan.grid:
            with tf32_as(net := Net("step", shape, precision, activation)):
                contest = Contest(net, plan.device, 0, plan.seed)
                contest.calls((OURS, EAGER))
            found = {name: contest.errors.get(name, math.inf) for name in (OURS, EAGER)}
            result.rows.append({"net": str(net), "activation": activation, "precision": precision, **found})
            worst[precision] = max(worst.get(precision, 0.0), found[OURS])
    for precision in ("float32", "tf32", "bfloat16", "float16"):
        result.judge(f"gpu-error-{precision}", worst[precision])
    return result


def sweep(plan: Plan) -> Result:
    """Both ways of each pass, ours and cuBLAS's, over sizes: where the library chooses the slower one.

    What a way costs is the geometric mean of its time as calls, which is mostly the host's, and of its time in a CUDA
    graph, which is the device's alone.
    """
    result = Result("Whose products are faster, by size")
    module: Any = _native.get_cuda()
    clock = replace(plan.clock, turns=3, turn_seconds=1e-3)
    narrow = {str(Net("step", shape)) for shape in plan.narrow}  # long batches of little arithmetic, told apart
    wrong = 0
    for precision in plan.sweep_precisions:
        for shape in (*itertools.product(*plan.sweep), *plan.narrow):
            batch, inputs, hidden, out = shape
            net = Net("step", (batch, inputs, hidden, out), precision, "relu")
            with tf32_as(net):
                for task, ways in _both_ways(module, plan, net).items():
                    chosen = "cuBLAS" if getattr(module, f"{task}_by_blas")(*shape) else "ours"
                    timings = clock.compare(ways)
                    row: dict[str, Any] = {"net": str(net), "task": task, "precision": precision, "chosen": chosen}
                    row |= {name: timing.median for name, timing in timings.items()}
                    if plan.device == "cuda":
                        row |= _in_graphs(clock, ways, {name: timing.median for name, timing in timings.items()})
                    row["work"] = module.work_of(*shape)
                    row["lost"] = _cost(row, chosen) / min(_cost(row, "ours"), _cost(row, "cuBLAS"))
                    result.rows.append(row)
                    wrong += row["lost"] > 1.05
    result.notes.append(f"{wrong} of {len(result.rows)} choices cost more than 5 %.")
    for row in result.rows:
        if row["net"] in narrow:
            ratio = _cost(row, "cuBLAS") / _cost(row, "ours")
            result.notes.append(
                f"narrow, {row['task']} {row['precision']} {row['net']}: ours is {ratio:.2f} × as fast as cuBLAS; "
                f"chosen is {row['chosen']}."
            )
    for precision, task in itertools.product(plan.sweep_precisions, ("forward", "backward")):
        of_both = [row for row in result.rows if (row["precision"], row["task"]) == (precision, task)]
        rows = [row for row in of_both if row["net"] not in narrow]
        limit, cost = best_limit(rows)
        now = statistics.geometric_mean(row["lost"] for row in rows)
        result.notes.append(
            f"{task} {precision}: ours up to {limit:,} of work would cost {cost:.3f} × the best of both on average; "
            f"now it is {now:.3f}."
        )
    return result


def _in_graphs(clock: Clock, ways: Mapping[str, Run], us: Mapping[str, float]) -> dict[str, float]:
    """The microseconds of one call in a graph of as many as fill some 200: one alone is lost in the graph's launch."""
    counts = {name: max(1, min(10, round(200 / us[name]))) for name in ways}
    timings = clock.compare({name: captured(way, counts[name]) for name, way in ways.items()})
    return {f"{name} in a graph": timing.median / counts[name] for name, timing in timings.items()}


def _cost(row: Mapping[str, Any], way: str) -> float:
    graph: float | None = row.get(f"{way} in a graph")
    return row[way] if graph is None else math.sqrt(row[way] * graph)


def best_limit(rows: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """The most work that ours should do, cuBLAS doing what is above, and what that costs over the best."""

    def cost(limit: int) -> float:
        return statistics.geometric_mean(
            _cost(row, "ours" if row["work"] <= limit else "cuBLAS") / min(_cost(row, "ours"), _cost(row, "cuBLAS"))
            for row in rows
        )

    costs = {limit: cost(limit) for limit in (0, *sorted({row["work"] for row in rows}))}
    best = min(costs, key=lambda limit: costs[limit])
    return best, costs[best]


def _both_ways(module: Any, plan: Plan, net: Net) -> dict[str, dict[str, Callable[[], object]]]:
    batch, inputs, hidden, out = net.shape
    tensor: dict[str, Any] = {"device": plan.device, "dtype": PRECISIONS[net.precision][0]}
    x, w1, b1, w2, b2, saved, grad_y = (
        torch.randn(size, **tensor) / size[-1] ** 0.5
        for size in ((batch, inputs), (hidden, inputs), (hidden,), (out, hidden), (out,), (batch, hidden), (batch, out))
    )
    tf32, activation = PRECISIONS[net.precision][1], net.activation
    needs = (False, True, True, True, True)

    def our_forward() -> Tensor:
        y = x.new_empty(batch, out)
        module.forward(x, w1, b1, w2, b2, x.new_empty(batch, hidden), y, IDS[activation], tf32)
        return y

    def our_backward() -> list[Tensor | None]:
        gradients = empty_gradients(x, w1, w2, needs)
        module.backward(grad_y, x, w1, w2, saved, *gradients, IDS[activation], tf32)
        return gradients

    return {
        "forward": {
            "ours": our_forward,
            "cuBLAS": lambda: _cuda_ops._large_forward(module, x, w1, b1, w2, b2, activation, keep_input=False),
        },
        "backward": {
            "ours": our_backward,
            "cuBLAS": lambda: _cuda_ops._large_backward(module, grad_y, x, w1, w2, saved, activation, needs),
        },
    }


CASES: dict[str, Callable[[Plan], Result]] = {
    "fit": fit,
    "step": step,
    "inference": inference,
    "errors": errors,
    "memory": memory,
    "grid": grid,
    "sweep": sweep,
}


def run(name: str, plan: Plan) -> Result:
    started = perf_counter()
    result = CASES[name](plan)
    result.seconds = perf_counter() - started
    return result
