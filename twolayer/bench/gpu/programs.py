"""Who takes part: each makes one call of a net, a training step's two passes or the outputs alone, on one device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ... import TwoLayerNet

Call = Callable[[], Sequence[Tensor]]  # the outputs, and in a step the gradients of the parameters after them
Shape = tuple[int, int, int, int]  # batch, in, hidden, out

PRECISIONS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "float64": (torch.float64, False),
}
# The largest error, of norms, that anyone may have who is timed. Ours are held to the targets beside.
BOUNDS = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2, "float16": 5e-2, "float64": 1e-9}

OURS, EAGER, COMPILED = "twolayer", "torch eager", "torch.compile"
GRAPHED = {"twolayer in a graph": OURS, "eager in a graph": EAGER}
PROGRAMS = (OURS, EAGER, COMPILED, *GRAPHED)


@dataclass(frozen=True)
class Net:
    """A call to be timed."""

    task: str  # "step": forward, and backward from given gradients of the outputs; "infer": forward alone
    shape: Shape
    precision: str = "float32"
    activation: str = "sigmoid"

    def __str__(self) -> str:
        batch, *layers = self.shape
        return f"{batch} × {'-'.join(map(str, layers))}"


@contextmanager
def tf32_as(net: Net) -> Iterator[None]:
    """Torch's switch of TF32 as the net's precision says."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, PRECISIONS[net.precision][1]
    try:
        yield
    finally:
        matmul.allow_tf32 = before


@torch.no_grad()
def _off_the_kink(layer: nn.Linear, x: Tensor) -> Tensor:
    """Round the layer's weights and the inputs returned: no hidden unit is near 0, all are exact in every precision.

    relu's derivative jumps at 0: where rounding takes a unit across, gradients are far from the truth, yet not wrong.
    """
    unit = 2.0 ** math.floor(math.log2(layer.in_features**-0.5) - 7)  # a weight is within some 16 times 16 of them
    layer.weight.copy_((layer.weight / (16 * unit)).round() * (16 * unit))
    layer.bias.copy_((2 * (layer.bias / (4 * unit)).round() + 1) * unit)  # odd, where all products are even
    return (x.clamp(-4, 4) * 8).round() / 8


class Contest:
    """The programs of one net, with the same weights and inputs; those that are wrong or cannot run are left out."""

    def __init__(self, net: Net, device: str, compile_seconds: float, seed: int) -> None:
        batch, inputs, hidden, out = net.shape
        dtype, _ = PRECISIONS[net.precision]
        torch.manual_seed(seed)
        self.net, self.device, self.compile_seconds = net, device, compile_seconds
        self.model = TwoLayerNet(inputs, hidden, out, net.activation)
        x = torch.randn(batch, inputs)
        if net.activation == "relu":
            x = _off_the_kink(self.model[0], x)
        self.x = x.to(device, dtype)
        self.model.to(device, dtype)
        self.plain = self.model.to_sequential()
        self.grad_y = torch.randn(batch, out).to(device, dtype)
        self.truth = self._truth()
        self.errors: dict[str, float] = {}
        self.left_out: dict[str, str] = {}

    def calls(self, programs: Sequence[str]) -> dict[str, Call]:
        """The calls that are right, ready to be timed."""
        ready = {}
        for name in programs:
            try:
                call = self._call(name)
                self.errors[name] = error = self.error_of(call)
                if not error <= BOUNDS[self.net.precision]:  # NaN is wrong too
                    raise ArithmeticError(f"wrong: relative error {error:.1e}")
                ready[name] = call
            except Exception as error:  # a program may fail in any way; the row says how
                self.left_out[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return ready

    def error_of(self, call: Call) -> float:
        """The largest relative error, of norms, among the outputs and gradients."""
        errors = []
        for found, exact in zip(call(), self.truth, strict=True):
            size = float(exact.norm())
            errors.append(float((found.double() - exact).norm()) / size if size else 0.0)
        return max(errors)

    def _truth(self) -> list[Tensor]:
        weights = {name: tensor.detach().double().requires_grad_() for name, tensor in self.plain.state_dict().items()}
        y = torch.func.functional_call(self.plain, weights, (self.x.double(),))
        if self.net.task == "infer":
            return [y.detach()]
        return [y.detach(), *torch.autograd.grad(y, list(weights.values()), self.grad_y.double())]

    def _call(self, name: str) -> Call:
        if name in GRAPHED:
            if self.device == "cpu":
                raise RuntimeError("there are no graphs on the CPU")
            return captured(self._call(GRAPHED[name]))
        if name == COMPILED and self.compile_seconds <= 0:
            raise RuntimeError("the time for compiling is used up")
        model: Any = self.model if name == OURS else self.plain
        if name == COMPILED:
            torch._dynamo.reset()
            model = torch.compile(model, fullgraph=True)
        call = self._inference(model) if self.net.task == "infer" else self._step(model)
        if name == COMPILED:
            started = perf_counter()
            call()
            self.compile_seconds -= perf_counter() - started
        return call

    def _inference(self, model: nn.Module) -> Call:
        x = self.x

        @torch.no_grad()
        def call() -> list[Tensor]:
            return [model(x)]

        return call

    def _step(self, model: nn.Module) -> Call:
        x, grad_y, parameters = self.x, self.grad_y, list(model.parameters())

        def call() -> list[Tensor]:
            for parameter in parameters:
                parameter.grad = None
            y = model(x)
            y.backward(grad_y)
            return [y.detach(), *(parameter.grad for parameter in parameters if parameter.grad is not None)]

        return call


def captured(call: Callable[[], Any], times: int = 1) -> Callable[[], Any]:
    """A replay of a CUDA graph of so many calls; it returns what the last of them gives."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
