"""Modules: the drop-in net, ``fuse`` for whole models, and the two activations that ``torch.nn`` lacks."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .functional import two_layer
from .predictor import Predictor, Weights
from .registry import ACTIVATIONS, Activation, lookup

logger = logging.getLogger(__name__)

# w1, b1, w2, b2 and the activation's name: the arguments of ``two_layer`` after x.
Run = tuple[Tensor, Tensor | None, Tensor, Tensor | None, str]


class ReLUSquared(nn.Module):
    """relu(z)², elementwise."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z).square()


class Sine(nn.Module):
    """sin(z), elementwise."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sin(z)


def make_activation(name: str) -> nn.Module:
    """Return a new module for the activation called ``name`` in :data:`twolayer.registry.ACTIVATIONS`."""
    return _build(lookup(ACTIVATIONS, name, "activation"))


def _build(row: Activation) -> nn.Module:
    own = {"ReLUSquared": ReLUSquared, "Sine": Sine}
    return (own.get(row.module) or getattr(nn, row.module))(**row.module_options)


def _options(module: nn.Module) -> dict[str, Any]:
    """Return the options that change an activation's values, such as LeakyReLU's slope."""
    return {name: getattr(module, name) for name in getattr(module, "__constants__", ()) if name != "inplace"}


def _names_by_class() -> dict[type[nn.Module], list[tuple[str, dict[str, Any]]]]:
    table: dict[type[nn.Module], list[tuple[str, dict[str, Any]]]] = {}
    for row in ACTIVATIONS.values():
        module = _build(row)
        table.setdefault(type(module), []).append((row.name, _options(module)))
    return table


_NAMES = _names_by_class()


def activation_name(module: nn.Module) -> str | None:
    """Return the name of the activation that ``module`` computes, by its class and options; None if it has no name."""
    for name, options in _NAMES.get(type(module), ()):
        if not options or options == _options(module):
            return name
    return None


def _is_hooked(state: dict[str, Any]) -> bool:
    """Whether calling the module with this ``__dict__`` does more than its class's ``forward``."""
    return bool(
        state["_forward_pre_hooks"]
        or state["_forward_hooks"]
        or state["_backward_pre_hooks"]
        or state["_backward_hooks"]
        or "forward" in state
    )


def plain_run(first: nn.Module, activation: nn.Module, second: nn.Module) -> Run | None:
    """Return ``two_layer``'s arguments for Linear → activation → Linear; None where that call would not do the same.

    It would not where a module is of another class (a subclass or a parametrized Linear is), has a hook (weight_norm
    and pruning are hooks) or a forward of its own, where a weight is no longer an ordinary parameter, or while hooks
    on all modules are set. Parameters are read anew at each call, so that replacing one is seen.
    """
    if type(first) is not nn.Linear or type(second) is not nn.Linear or _has_any_global_hook():
        return None
    name = activation_name(activation)
    if name is None or _is_hooked(first.__dict__) or _is_hooked(activation.__dict__) or _is_hooked(second.__dict__):
        return None
    # Straight from the dictionaries, as Module.__getattr__ is slow; a weight made a plain attribute is not in them.
    layer1, layer2 = first._parameters, second._parameters
    try:
        return layer1["weight"], layer1["bias"], layer2["weight"], layer2["bias"], name  # type: ignore[return-value]
    except KeyError:
        return None


def parameters_of(net: object) -> Run:
    """Return w1, b1, w2, b2 and the activation's name of a net to be trained.

    Raises ``TypeError`` when ``net`` is no Sequential and ``ValueError`` when it is not a plain Linear → activation →
    Linear, without hooks or parametrizations, whose parameters may be written to.
    """
    if not isinstance(net, nn.Sequential):
        raise TypeError(f"net must be a TwoLayerNet or an nn.Sequential; got {type(net).__name__}")
    children = list(net._modules.values())
    run = plain_run(*children) if len(children) == 3 else None
    if run is None:
        raise ValueError(f"net must be Linear → activation → Linear, without hooks or parametrizations; got {net!r}")
    return run


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs each Linear → activation → Linear inside it as one :func:`twolayer.two_layer`.

    Its children, their names and so its ``state_dict`` are those of the plain Sequential. Runs are found anew at each
    call, from the first child on: a hook or a parametrization added later is honoured (that run is then no longer
    fused), and so is a child appended, removed or replaced. ``repr`` shows what is fused at present.
    """

    def forward(self, input: Tensor) -> Tensor:
        children = self._modules.values()
        if len(children) == 3 and (run := plain_run(*children)) is not None:  # the whole is one run: no list of steps
            return two_layer(input, *run)
        for step in self._steps():
            input = step(input) if isinstance(step, nn.Module) else two_layer(input, *step)
        return input

    def _steps(self) -> Iterator[nn.Module | Run]:
        children = list(self._modules.values())
        position = 0
        while position < len(children):
            run = plain_run(*children[position : position + 3]) if position + 2 < len(children) else None
            yield children[position] if run is None else run
            position += 1 if run is None else 3

    def extra_repr(self) -> str:
        names, fused = iter(self._modules), []
        for step in self._steps():
            width = 1 if isinstance(step, nn.Module) else 3
            taken = [next(names) for _ in range(width)]
            if width == 3:
                fused.append("-".join(taken))
        return f"fused: {', '.join(fused) or 'none'}"


class TwoLayerNet(FusedSequential):
    """``nn.Sequential(nn.Linear, activation, nn.Linear)``, computed by :func:`twolayer.two_layer`.

    It is such a Sequential: the same ``state_dict`` keys (0.weight, 0.bias, 2.weight, 2.bias) and shapes, the same
    initial weights for the same seed, the same indexing. Input (..., in_features), output (..., out_features).

    Args:
        in_features, hidden_features, out_features: the sizes of the layers.
        activation: a name in :data:`twolayer.registry.ACTIVATIONS`; another raises ``ValueError``.
        bias: whether the two layers have biases.
        device, dtype: of the parameters, as for ``nn.Linear``.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        activation: str = "sigmoid",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        middle = make_activation(activation)
        first = nn.Linear(in_features, hidden_features, bias, device, dtype)
        super().__init__(first, middle, nn.Linear(hidden_features, out_features, bias, device, dtype))

    @classmethod
    def from_sequential(cls, sequential: nn.Sequential) -> TwoLayerNet:
        """Return a net made of the three modules of ``sequential``: they are shared, not copied.

        Raises ``TypeError`` when it is no Sequential, ``ValueError`` when it is not Linear → activation → Linear with
        an activation that twolayer has, options included.
        """
        if not isinstance(sequential, nn.Sequential):
            raise TypeError(f"sequential must be an nn.Sequential; got {type(sequential).__name__}")
        children = list(sequential._modules.values())
        if len(children) != 3:
            raise ValueError(f"sequential must be Linear → activation → Linear; got {len(children)} modules")
        for position in (0, 2):
            if not isinstance(children[position], nn.Linear):
                raise ValueError(f"sequential[{position}] must be an nn.Linear; got {children[position]!r}")
        if activation_name(children[1]) is None:
            known = ", ".join(repr(_build(row)) for row in ACTIVATIONS.values())
            raise ValueError(f"sequential[1] must be one of {known}; got {children[1]!r}")
        net = cls.__new__(cls)
        nn.Sequential.__init__(net, *children)
        net.training = sequential.training
        return net

    def to_sequential(self) -> nn.Sequential:
        """Return a plain ``nn.Sequential`` of this net's modules: they are shared, not copied."""
        sequential = nn.Sequential(*self)
        sequential.training = self.training
        return sequential

    def predictor(self, threads: int | None = None) -> Predictor:
        """Return the net made ready to predict: NumPy array in, NumPy array out, far faster than a call for few rows.

        ``threads`` is how many to use at most, by default ``TWOLAYER_NUM_THREADS`` or all cores. See
        :class:`twolayer.predictor.Predictor`; its ``refresh()`` takes over what training has changed. It runs on the
        CPU, wherever the net is. Raises ``ValueError`` for a net with hooks or parametrizations.
        """
        return Predictor(self._weights, threads)

    def _weights(self) -> Weights:
        w1, b1, w2, b2, activation = parameters_of(self)
        tensors = [t for t in (w1, b1, w2, b2) if t is not None]
        if not all(t.is_floating_point() for t in tensors):
            raise ValueError(f"net's parameters must be floating-point; got {', '.join(str(t.dtype) for t in tensors)}")
        dtype = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
        arrays = [None if t is None else t.detach().to("cpu", dtype).contiguous().numpy() for t in (w1, b1, w2, b2)]
        return Weights(*arrays, activation)  # type: ignore[arg-type, call-arg]

    def __getitem__(self, index: int | slice) -> Any:
        """Return a module, or for a slice a Sequential of modules."""
        if isinstance(index, slice):
            return FusedSequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    @property
    def in_features(self) -> int:
        return self[0].in_features

    @property
    def hidden_features(self) -> int:
        return self[0].out_features

    @property
    def out_features(self) -> int:
        return self[2].out_features

    @property
    def activation(self) -> str:
        """The name of the activation between the layers."""
        name = activation_name(self[1])
        if name is None:
            raise ValueError(f"module 1 of the net must be an activation that twolayer has; it is {self[1]!r}")
        return name


def fuse(model: nn.Module) -> nn.Module:
    """Have every Linear → activation → Linear inside an ``nn.Sequential`` of ``model`` run as one ``two_layer``.

    ``model`` is changed in place, down to its innermost modules, and returned; where ``model`` itself is a Sequential
    to be replaced, its replacement is returned. A replacement holds the very modules of the Sequential under their old
    names: parameters are shared (an optimiser built before still works) and the ``state_dict`` keys do not change. It
    is a :class:`TwoLayerNet` where the Sequential was just that, else a :class:`FusedSequential`.

    Left alone: Linears outside an ``nn.Sequential``, subclasses of Sequential, Sequentials with hooks or attributes of
    their own, runs that :func:`plain_run` refuses. In Linear → act → Linear → act → Linear the first two are fused.

    What was fused is logged, one INFO line per Sequential, by the logger ``twolayer.nn``; that nothing was, as a
    WARNING. ``repr(model)`` shows it too. Raises ``TypeError`` when ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    replaced: dict[nn.Module, nn.Module] = {}
    for path, module in list(model.named_modules()):
        if _can_fuse(module):
            replaced[module] = replacement = _fused(cast(nn.Sequential, module))
            logger.info("fused %s: %s", path or "the model", replacement)
    if not replaced:
        logger.warning("fuse found no Linear → activation → Linear to fuse in %s", type(model).__name__)
    for parent in [*model.modules(), *replaced.values()]:
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    return replaced.get(model, model)


def _can_fuse(module: nn.Module) -> bool:
    if type(module) is not nn.Sequential or not _is_bare(module):
        return False
    return any(not isinstance(step, nn.Module) for step in FusedSequential._steps(cast(FusedSequential, module)))


def _is_bare(sequential: nn.Sequential) -> bool:
    """Whether it holds nothing but its children: no hook of any kind, parameter, buffer or attribute of its own."""
    default = vars(nn.Sequential())
    rest = {name: value for name, value in vars(sequential).items() if name not in ("_modules", "training")}
    return all(name in default and value == default[name] for name, value in rest.items())


def _fused(sequential: nn.Sequential) -> FusedSequential:
    if list(sequential._modules) == ["0", "1", "2"]:
        return TwoLayerNet.from_sequential(sequential)
    fused = FusedSequential(OrderedDict(sequential._modules))
    fused.training = sequential.training
    return fused
