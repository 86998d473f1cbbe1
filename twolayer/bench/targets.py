"""What is asked for, in one table; ratios are over the named peer's time on the same machine in the same run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound on a figure."""

    what: str
    bound: float
    at_least: bool = True
    unit: str = "×"

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def words(self) -> dict[str, Any]:
        return asdict(self)


TARGETS = {
    "digits-linear": Target("fit over the tutorial's nn.Linear loop, MNIST's pixels", 15),
    "digits-jax": Target("fit over JAX scan, MNIST's pixels", 10),
    "dense-peak": Target("fit's arithmetic of the measured peak, dense inputs", 75, unit="%"),
    "dense-eager": Target("fit over torch's eager loop, dense inputs", 4),
    "dense-jax": Target("fit over JAX scan, dense inputs", 2.8),
    "bfloat16": Target("fit in bfloat16 over fit in float32", 1.6),
    "regression-torch": Target("fit over torch autograd, regression in float32", 3.5),
    "regression64-numpy": Target("fit over NumPy, regression in float64", 2.5),
    "regression64-torch": Target("fit over torch autograd, regression in float64", 3),
    "grid-least": Target("fit over the best eager loop, least of the grid", 1.5),
    "grid-mean": Target("fit over the best eager loop, geometric mean of the grid", 5),
    "tiny": Target("fit over the best eager loop, least of the tiny nets", 60),
    "module-forward-mean": Target("TwoLayerNet over nn.Sequential, forward, geometric mean", 1.8),
    "module-forward-least": Target("TwoLayerNet over nn.Sequential, forward, least", 1.0),
    "module-backward-mean": Target("TwoLayerNet over nn.Sequential, forward and backward, geometric mean", 1.8),
    "module-backward-least": Target("TwoLayerNet over nn.Sequential, forward and backward, least", 1.0),
    "module-step-mean": Target("TwoLayerNet over nn.Sequential, a step of torch.optim, geometric mean", 1.0),
    "module-step-least": Target("TwoLayerNet over nn.Sequential, a step of torch.optim, least", 1.0),
    "infer-1": Target("TwoLayerNet over nn.Sequential, inference, batch 1", 3),
    "infer-64-1-thread": Target("TwoLayerNet over nn.Sequential, inference, batch 64, one thread", 1.4),
    "infer-64-2-threads": Target("TwoLayerNet over nn.Sequential, inference, batch 64, two threads", 2),
    "infer-4096": Target("TwoLayerNet over nn.Sequential, inference, batch 4096", 1.2),
    "predictor-1": Target("predictor over nn.Sequential, batch 1", 5),
    "optimizer-cost": Target("fit by the slowest of Adam and momentum SGD over plain SGD, time", 1.25, at_least=False),
    "threads": Target("fit on two threads over one, dense inputs", 1.8),
    "many": Target("fit_many of 8 nets on two threads over 8 fits on one", 1.8),
    "busy": Target("fit on two threads over one, time, one core taken", 1.3, at_least=False),
    "widths": Target("time per multiply-add, largest rise between neighbouring widths", 1.5, at_least=False),
    "memory": Target("memory of fit beyond the data", 16, at_least=False, unit="MB"),
    "import": Target("import of twolayer beyond NumPy's", 30, at_least=False, unit="ms"),
    "first-fit": Target("the first short fit over later ones, time", 2, at_least=False),
    "gpu-step": Target("TwoLayerNet over torch eager on a GPU, forward and backward of 64 × 784-100-10", 3),
    "gpu-infer": Target("TwoLayerNet over torch eager on a GPU, inference at batch 1 to 256, least", 3),
    "gpu-grid-mean": Target("TwoLayerNet over torch eager on a GPU, geometric mean of the grid", 1.5),
    "gpu-grid-least": Target("TwoLayerNet over torch eager on a GPU, least of the grid", 1.0),
    "gpu-memory": Target("memory-bound shapes on a GPU, of a copy's bandwidth, least", 80, unit="%"),
    "gpu-fit-step": Target("fit on a GPU, a step of the tutorial's MNIST run", 9, at_least=False, unit="µs"),
    "gpu-fit-eager": Target("fit over torch's eager loop on a GPU, the tutorial's MNIST run", 25),
    "gpu-fit-graph": Target("fit over a torch step in a CUDA graph, the tutorial's MNIST run", 4),
    "gpu-fit-many": Target("fit_many of 8 nets on a GPU over fit of one, time", 1.2, at_least=False),
    "gpu-error-float32": Target("relative error on a GPU, float32", 1e-5, at_least=False, unit=""),
    "gpu-error-tf32": Target("relative error on a GPU, TF32", 1e-3, at_least=False, unit=""),
    "gpu-error-bfloat16": Target("relative error on a GPU, bfloat16", 1e-2, at_least=False, unit=""),
    "gpu-error-float16": Target("relative error on a GPU, float16", 1e-2, at_least=False, unit=""),
}
