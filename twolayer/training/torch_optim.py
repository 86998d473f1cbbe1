"""To and from torch.optim: its object of the same kind, with the same options and state."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..nn import parameters_of
from .options import PARAMETER_NAMES, TrainOptions

CLASSES: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def make_optimizer(net: Any, options: TrainOptions, state_dict: dict[str, Any]) -> torch.optim.Optimizer:
    """Return the torch.optim object that would go on from a trainer's ``state_dict``, on the net's parameters."""
    if options.update_rule["eps_hat"]:
        raise ValueError("torch.optim has no eps_hat: its eps is added after the correction")
    parameters = _trained(net)
    own = [name for name in options.optimizer.options if name in options.update_rule and name != "eps_hat"]
    rule = {name: options.update_rule[name] for name in own}
    optimizer = CLASSES[options.optimizer.name](parameters.values(), lr=options.lr, **rule)
    if state_dict["steps"] > 0:
        for name, parameter in parameters.items():
            state = {key: torch.as_tensor(arrays[name]) for key, arrays in state_dict["state"].items()}
            if options.optimizer.name != "sgd":
                state["step"] = torch.tensor(float(state_dict["steps"]))
            optimizer.state[parameter] = state
    return cast(torch.optim.Optimizer, optimizer)


def read_state(
    net: Any, optimizer: torch.optim.Optimizer, options: TrainOptions
) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """Return (steps taken, state by name and parameter) of a torch.optim object built on the net's parameters.

    SGD does not count its steps: they are 0 while it holds no momentum, else 1 ("not the first").
    """
    wanted = CLASSES[options.optimizer.name]
    if type(optimizer) is not wanted:
        raise TypeError(f"optimizer must be a torch.optim.{wanted.__name__}; got {type(optimizer).__name__}")
    names = _kept(options)
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    steps = 0
    state: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for parameter_name, parameter in _trained(net).items():
        if id(parameter) not in owned:
            raise ValueError(f"optimizer must be built on the net's parameters; it does not hold {parameter_name}")
        held = optimizer.state.get(parameter, {})
        for name in names:
            if held and held.get(name) is None:
                raise ValueError(
                    f"optimizer must hold {name} of {parameter_name}, as the trainer's options say; it holds "
                    f"{', '.join(sorted(held))}"
                )
            state[name][parameter_name] = held.get(name, torch.zeros_like(parameter))
        if held:
            steps = max(steps, int(held.get("step", 1)))
    return steps, state


def _trained(net: Any) -> dict[str, nn.Parameter]:
    *tensors, _ = parameters_of(net)
    named = zip(PARAMETER_NAMES, tensors, strict=True)
    return {name: tensor for name, tensor in named if isinstance(tensor, nn.Parameter) and tensor.requires_grad}


def _kept(options: TrainOptions) -> list[str]:
    return [name for name in options.optimizer.states if options.optimizer.keeps(name, options.update_rule)]
