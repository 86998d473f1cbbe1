"""What is measured: one table of cases, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..contest import Contest
from ..document import CaseResult
from . import grid, modules, processes, training


@dataclass(frozen=True)
class Case:
    """One row; ``run(contest, result, quick)`` fills the result."""

    name: str
    title: str
    run: Callable[[Contest, CaseResult, bool], None]


CASES = {
    case.name: case
    for case in (
        Case("digits", "fit on MNIST's raw pixels, 784-100-10 sigmoid, batch 64", training.digits),
        Case("dense", "fit on dense random inputs, 784-100-10 sigmoid, batch 64", training.dense),
        Case("bfloat16", "fit in bfloat16 with float32 weights, dense random inputs", training.bfloat16),
        Case("regression", "the tutorial's regression, 64 × 1000-100-10 ReLU, 500 steps", training.regression),
        Case("tiny", "fit of a tiny net, 8-64-2", grid.tiny),
        Case("grid-8", "fit over batch and hidden width, 8 inputs", grid.of_inputs(8)),
        Case("grid-64", "fit over batch and hidden width, 64 inputs", grid.of_inputs(64)),
        Case("grid-784", "fit over batch and hidden width, 784 inputs", grid.of_inputs(784)),
        Case("module-forward", "TwoLayerNet against nn.Sequential: forward", modules.of_task("forward")),
        Case("module-backward", "TwoLayerNet against nn.Sequential: forward and backward", modules.of_task("backward")),
        Case("module-step", "TwoLayerNet against nn.Sequential: a step of torch.optim", modules.of_task("step")),
        Case("inference", "outputs under no_grad, 784-100-10 sigmoid", modules.inference),
        Case("optimizers", "fit by Adam and by momentum SGD against plain SGD", training.optimizers),
        Case("threads", "fit on one and on two threads, dense random inputs", training.threads),
        Case("many", "eight nets on the same data: fit_many against one fit after the other", training.many),
        Case("busy", "fit while another process takes one of two cores", processes.busy),
        Case("widths", "fit over hidden widths, odd ones too: cliffs", grid.widths),
        Case("memory", "memory that fit needs beyond the data", processes.memory),
        Case("startup", "import, and the first short fit", processes.startup),
    )
}
