"""The parameters of a net as NumPy arrays over its own memory, for the training engines."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("w1", "b1", "w2", "b2")
TRAINED_DTYPES = ("float32", "float64")


class NetParameters:
    """A net's weights as (w1, b1, w2, b2), in ``nn.Linear``'s shapes: (hidden, in), (hidden,), (out, hidden), (out,).

    ``net`` is a :class:`twolayer.TwoLayerNet`, or an ``nn.Sequential`` of the same three modules. Raises ``TypeError``
    for anything else, and ``ValueError`` when a parameter cannot be trained in place.
    """

    def __init__(self, net: Any) -> None:
        from .nn import parameters_of

        w1, b1, w2, b2, self.activation = parameters_of(net)
        self._named: dict[str, Tensor] = {
            name: tensor for name, tensor in zip(NAMES, (w1, b1, w2, b2), strict=True) if tensor is not None
        }
        self.dtype = np.dtype(_check_trainable(self._named))
        self.hidden_features, self.in_features = w1.shape
        self.out_features = w2.shape[0]
        sizes = f"{self.in_features} → {self.hidden_features} → {self.out_features}"
        self.form = f"{sizes}, {self.activation}, {self.dtype}, {' '.join(self._named)}"  # all but the numbers
        if 0 in (*w1.shape, *w2.shape):
            raise ValueError(f"net must have at least one feature of each kind to be trained; it is {self.form}")

    def has(self, name: str) -> bool:
        return name in self._named

    def arrays(self) -> tuple[NDArray[Any] | None, ...]:
        """Return (w1, b1, w2, b2), each sharing its parameter's memory; None for a bias the net does not have."""
        return tuple(self._named[name].detach().numpy() if name in self._named else None for name in NAMES)

    def empty(self) -> tuple[NDArray[Any] | None, ...]:
        """Return new arrays of the parameters' shapes."""
        return tuple(None if array is None else np.empty_like(array) for array in self.arrays())

    def mark_written(self) -> None:
        """Tell autograd that the parameters were changed in place, so that a graph made before is not run backward."""
        import torch

        torch.autograd.graph.increment_version(list(self._named.values()))


def _check_trainable(named: dict[str, Tensor]) -> str:
    """Return the dtype's name; raise ``ValueError`` unless all are contiguous on the CPU, in one dtype, and trained."""
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in named.items()}
    for name, tensor in named.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"net's {name} must be on the cpu to be trained by fit; it is on {tensor.device}")
        if dtypes[name] not in TRAINED_DTYPES or dtypes[name] != dtypes["w1"]:
            raise ValueError(f"net's parameters must all be float32 or all float64; got {dtypes}")
        if not tensor.is_contiguous():
            raise ValueError(f"net's {name} must be contiguous; its strides are {tensor.stride()}")
        if not tensor.requires_grad:
            raise ValueError(f"net's {name} must require grad: this version trains every parameter")
    extents = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name) for name, tensor in named.items())
    for (_, end, name), (start, _, next_name) in pairwise(extents):
        if start < end:
            raise ValueError(f"net's {name} and {next_name} must not share memory to be trained by fit")
    return dtypes["w1"]
