"""A trained net in one file, with all that it takes to predict from data as they come; torch is never imported.

The file is safetensors: ``0.weight``, ``0.bias``, ``2.weight`` and ``2.bias``, as an ``nn.Sequential`` of Linear,
activation, Linear has them in its ``state_dict``, and beside them, as texts of JSON, how inputs and targets were
encoded, what the net was trained with, and how training went.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._version import __version__
from .atomic import write_bytes
from .data.encoding import InputEncoder, TargetEncoder
from .extras import require
from .numpy_net import NumpyNet
from .registry import ACTIVATIONS, lookup
from .training.checks import check_shapes
from .training.results import History

Array = NDArray[Any]

STATE_NAMES = {"w1": "0.weight", "b1": "0.bias", "w2": "2.weight", "b2": "2.bias"}
_FORMAT = "twolayer"
_FORMAT_VERSION = 1
_ROWS = 4096  # of a sparse matrix that are dense at a time


@dataclass
class Model:
    """A trained net, and how its inputs and targets come from data.

    ``training`` says what it was trained on and with, ``history`` how that went.
    """

    net: NumpyNet
    inputs: InputEncoder
    target: TargetEncoder
    training: dict[str, Any] = field(default_factory=dict)
    history: History = field(default_factory=History)

    def outputs(self, inputs: Any) -> Array:
        """Return the net's outputs (rows, out) for inputs as they come: a DataFrame, an array, a CSR matrix.

        For classes they are scores, to which :func:`probabilities` applies; values are still scaled. ``ValueError``
        names the column and row that are not such as the net was trained on.
        """
        return self.outputs_of_encoded(self.inputs.encode(inputs, self.net.w1.dtype))

    def outputs_of_encoded(self, x: Any) -> Array:
        """Return the net's outputs (rows, out) for x (rows, in), an array or a CSR matrix, that is encoded already."""
        predictor = self.net.predictor()
        if isinstance(x, np.ndarray):
            return predictor(x)
        chunks = [predictor(x[first : first + _ROWS].toarray()) for first in range(0, x.shape[0], _ROWS)]
        return np.concatenate(chunks)

    def predict(self, inputs: Any) -> Array:
        """Return each row's class (rows,), or its values (rows, out), for inputs as :meth:`outputs` takes them."""
        return self.target.decode(self.outputs(inputs))


def probabilities(outputs: Array) -> Array:
    """Return each class's probability (rows, classes), the softmax of the scores, float64."""
    shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def save_model(path: str | PathLike[str], model: Model, extra: Mapping[str, Array] | None = None) -> None:
    """Write the model, and arrays besides, to ``path``: at once, so that there is always a whole file or none.

    ``OSError`` when it cannot be written; ``ImportError`` when safetensors is not installed.
    """
    safetensors = require("safetensors.numpy", "a model file", "cli")
    tensors = {STATE_NAMES[name]: np.ascontiguousarray(array) for name, array in model.net.parameters().items()}
    facts = {
        "versions": {"twolayer": __version__, "numpy": np.__version__},
        "activation": model.net.activation,
        "task": model.target.task,
        "inputs": model.inputs.to_json(),
        "target": model.target.to_json(),
        "training": model.training,
        "history": dataclasses.asdict(model.history),
    }
    metadata = {"format": _FORMAT, "format_version": str(_FORMAT_VERSION)}
    metadata |= {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    write_bytes(Path(path), safetensors.save({**tensors, **(extra or {})}, metadata))


def load_model(path: str | PathLike[str]) -> Model:
    """Read what ``save_model`` wrote.

    ``ValueError``, naming the file, when it is something else, or of a later version of the format; ``ImportError``
    when safetensors is not installed.
    """
    return read_model(path)[0]


def read_model(path: str | PathLike[str]) -> tuple[Model, dict[str, Array]]:
    """Read a model and the arrays that were saved besides."""
    safetensors = require("safetensors", "a model file", "cli")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a model file; it is damaged, or something else: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path}: expected a model file of twolayer's; got safetensors of something else")
    if metadata.get("format_version") != str(_FORMAT_VERSION):
        found = metadata.get("format_version")
        raise ValueError(f"{path}: expected version {_FORMAT_VERSION} of the format; got {found}: a newer twolayer's?")
    try:
        net = _net({name: tensors.pop(key) for name, key in STATE_NAMES.items() if key in tensors}, metadata)
        model = Model(
            net,
            InputEncoder.from_json(json.loads(metadata["inputs"])),
            TargetEncoder.from_json(json.loads(metadata["target"])),
            json.loads(metadata["training"]),
            History(**json.loads(metadata["history"])),
        )
        if (model.inputs.features, model.target.features) != (net.w1.shape[1], len(net.w2)):
            raise ValueError("the encoding does not fit the weights")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a model file; it is damaged: {error!r}") from error
    return model, tensors


def _net(arrays: dict[str, Array], metadata: Mapping[str, str]) -> NumpyNet:
    if not {"w1", "w2"} <= arrays.keys():
        raise ValueError("it has no weights")
    check_shapes(arrays)
    (hidden, inputs), outputs = arrays["w1"].shape, len(arrays["w2"])
    activation = lookup(ACTIVATIONS, metadata["activation"], "activation").name
    net = NumpyNet(inputs, hidden, outputs, activation, bias="b1" in arrays, dtype=arrays["w1"].dtype)
    for name, array in arrays.items():
        setattr(net, name, array)
    return net
