"""The parameters of a net as arrays over its own memory, whatever kind of net it is and wherever it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import check_numpy, check_shapes
from .host import HOST
from .options import PARAMETER_NAMES
from .place import Array, Place, name_of_dtype

if TYPE_CHECKING:
    from torch import Tensor

Arrays = tuple[Array | None, Array | None, Array | None, Array | None]  # w1, b1, w2, b2

TRAINED_DTYPES = ("float32", "float64")


class NetParameters:
    """A net's weights by name, in ``nn.Linear``'s shapes: w1 (hidden, in), b1 (hidden,), w2 (out, hidden), b2 (out,).

    ``arrays`` are of ``place`` and share the parameters' memory. Those in ``frozen`` are not to be changed.
    """

    def __init__(self, place: Place, arrays: Mapping[str, Array], activation: str, frozen: frozenset[str]) -> None:
        check_shapes(arrays)
        self.place = place
        self._arrays = arrays
        self.activation = activation
        self.frozen = frozen
        self.dtype = np.dtype(name_of_dtype(arrays["w1"]))
        self.hidden_features, self.in_features = arrays["w1"].shape
        self.out_features = arrays["w2"].shape[0]
        sizes = f"{self.in_features} → {self.hidden_features} → {self.out_features}"
        names = " ".join(f"{name} (frozen)" if name in frozen else name for name in arrays)
        self.form = f"{sizes}, {activation}, {self.dtype}, {names}{place.note}"  # all but the numbers
        self._check()

    def has(self, name: str) -> bool:
        return name in self._arrays

    def arrays(self) -> Arrays:
        """Return (w1, b1, w2, b2); None for a bias the net does not have."""
        w1, b1, w2, b2 = (self._arrays.get(name) for name in PARAMETER_NAMES)
        return w1, b1, w2, b2

    def trained(self) -> Arrays:
        """Return (w1, b1, w2, b2); None for what is frozen, or what the net does not have."""
        w1, b1, w2, b2 = (None if name in self.frozen else self._arrays.get(name) for name in PARAMETER_NAMES)
        return w1, b1, w2, b2

    def is_of(self, net: Any) -> bool:
        """Whether these are still the very arrays of ``net``."""
        held = net.parameters()
        return held.keys() == self._arrays.keys() and all(held[name] is self._arrays[name] for name in held)

    def mark_written(self) -> None:
        """Tell whoever keeps track that the trained parameters were changed in place."""

    def _check(self) -> None:
        kinds = {name: name_of_dtype(array) for name, array in self._arrays.items()}
        if kinds["w1"] not in TRAINED_DTYPES or len(set(kinds.values())) > 1:
            raise ValueError(f"net's parameters must all be float32 or all float64; got {kinds}")
        if 0 in (self.in_features, self.hidden_features, self.out_features):
            raise ValueError(f"net must have at least one feature of each kind to be trained; it is {self.form}")
        for name, array in self._arrays.items():
            if problem := self.place.problem_of(array, name not in self.frozen):
                raise ValueError(f"net's {name} {problem}")
        extents = sorted((*self.place.extent(array), name) for name, array in self._arrays.items())
        for (start, size, name), (next_start, _, next_name) in pairwise(extents):
            if start + size > next_start:
                raise ValueError(f"net's {name} and {next_name} must not share memory to be trained by fit")


class TorchParameters(NetParameters):
    """Those of a :class:`twolayer.TwoLayerNet` or the equal ``nn.Sequential``; frozen ones do not require grad."""

    def __init__(self, net: Any) -> None:
        from ..nn import parameters_of

        w1, b1, w2, b2, activation = parameters_of(net)
        self._tensors: dict[str, Tensor] = {
            name: tensor for name, tensor in zip(PARAMETER_NAMES, (w1, b1, w2, b2), strict=True) if tensor is not None
        }
        place = _place_of(w1)
        for name, tensor in self._tensors.items():
            if tensor.device != w1.device:
                raise ValueError(f"net's {name} must be on {w1.device}, as its w1 is; it is on {tensor.device}")
            if str(tensor.dtype).removeprefix("torch.") not in TRAINED_DTYPES:
                raise ValueError(f"net's {name} must be float32 or float64 to be trained by fit; it is {tensor.dtype}")
        frozen = frozenset(name for name, tensor in self._tensors.items() if not tensor.requires_grad)
        arrays = {name: place.of_parameter(tensor) for name, tensor in self._tensors.items()}
        super().__init__(place, arrays, activation, frozen)
        self._seen = self._identity(w1, b1, w2, b2, activation)

    def is_of(self, net: Any) -> bool:
        from ..nn import parameters_of

        return self._seen == self._identity(*parameters_of(net))

    @staticmethod
    def _identity(w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, activation: str) -> tuple[Any, ...]:
        tensors = (w1, b1, w2, b2)
        return activation, *[None if t is None else (id(t), t.data_ptr(), t.requires_grad, t.stride()) for t in tensors]

    def mark_written(self) -> None:
        import torch  # so that a graph made before the change is not run backward

        torch.autograd.graph.increment_version([t for name, t in self._tensors.items() if name not in self.frozen])


def _place_of(w1: Tensor) -> Place:
    """Return where a net with that parameter is trained."""
    from .. import _cuda_ops

    if w1.device.type == _cuda_ops._device_type:
        from .cuda import Cuda

        return Cuda(w1.device)
    if w1.device.type != "cpu":
        raise ValueError(f"net's w1 must be on the cpu or on cuda to be trained by fit; it is on {w1.device}")
    return HOST


def parameters_of_net(net: Any) -> NetParameters:
    """Return the parameters of a torch net or a :class:`twolayer.NumpyNet`; ``TypeError`` for anything else."""
    from ..numpy_net import NumpyNet

    if isinstance(net, NumpyNet):
        arrays = net.parameters()
        check_numpy(arrays)
        return NetParameters(HOST, arrays, net.activation, frozenset())
    if "torch" in sys.modules:
        return TorchParameters(net)
    raise TypeError(f"net must be a TwoLayerNet, an nn.Sequential or a NumpyNet; got {type(net).__name__}")
