"""Policy gradient on cart-pole, where overhead is everything: one row at a time to act, one small step to learn.

Acting goes through ``net.predictor()``, learning through ``Trainer.step``. The latter knows no policy gradient, but any
loss will do whose gradient g for the outputs z is known: that of the sum of squares at the targets z − g/2 is just g.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from plain import report, seconds_of, warm_up
from torch.nn.functional import cross_entropy

import twolayer

HIDDEN, LR, LONGEST, DISCOUNT = 32, 0.01, 200, 0.98
Scores = Callable[[np.ndarray], tuple[float, float]]  # a state's (4,) scores of "left" and "right"
Learn = Callable[[np.ndarray, np.ndarray, np.ndarray], None]  # from states (n, 4), actions (n,) and advantages (n,)


class CartPole:
    """Barto, Sutton and Anderson's: a state is (position, speed, angle, angular speed); a step is a fiftieth second."""

    def __init__(self, draw: np.random.Generator) -> None:
        self.state = draw.uniform(-0.05, 0.05, 4).astype(np.float32)

    def step(self, right: bool) -> bool:
        """Push; return whether the pole still stands and the cart is still on its track."""
        position, speed, angle, turning = self.state.tolist()
        sin, cos = math.sin(angle), math.cos(angle)
        push = ((10.0 if right else -10.0) + 0.05 * turning * turning * sin) / 1.1
        turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos * cos / 1.1))
        drive = push - 0.05 * turn * cos / 1.1
        self.state = np.array(
            [position + 0.02 * speed, speed + 0.02 * drive, angle + 0.02 * turning, turning + 0.02 * turn], np.float32
        )
        return abs(position) < 2.4 and abs(angle) < 0.2095


def play(scores: Scores, draw: np.random.Generator) -> tuple[list[np.ndarray], list[bool]]:
    """States seen and actions taken, until it falls or has stood long enough."""
    cart, states, actions = CartPole(draw), [], []
    for _ in range(LONGEST):
        left, right = scores(cart.state)
        states.append(cart.state)
        actions.append(bool(draw.random() < 1 / (1 + math.exp(left - right))))
        if not cart.step(actions[-1]):
            break
    return states, actions


def improve(scores: Scores, learn: Learn, updates: int, episodes: int = 8) -> list[float]:
    """Play and learn in turns; return the mean length of each turn's episodes."""
    draw, lengths = np.random.default_rng(0), []
    for _ in range(updates):
        states, actions, returns = [], [], []
        for _ in range(episodes):
            seen, taken = play(scores, draw)
            states += seen
            actions += taken
            returns.append((1 - DISCOUNT ** np.arange(len(seen), 0, -1.0)) / (1 - DISCOUNT))  # a reward of 1 a step
        gains = np.concatenate(returns)
        learn(np.stack(states), np.array(actions, np.int64), ((gains - gains.mean()) / (gains.std() + 1e-6)))
        lengths.append(len(states) / episodes)
    return lengths


def with_twolayer(net: twolayer.TwoLayerNet) -> tuple[Scores, Learn]:
    trainer = twolayer.Trainer(net, loss="mse_sum", optimizer="adam", lr=LR)
    predictor = net.predictor()

    def learn(states: np.ndarray, actions: np.ndarray, advantages: np.ndarray) -> None:
        z = predictor(states)
        chances = np.exp(z - z.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        gradient = (chances - np.eye(2)[actions]) * advantages[:, None] / len(states)
        trainer.step(states, (z - gradient / 2).astype(np.float32))
        predictor.refresh()

    return lambda state: predictor(state).tolist(), learn


def with_pytorch(net: torch.nn.Module) -> tuple[Scores, Learn]:
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)

    def scores(state: np.ndarray) -> tuple[float, float]:
        with torch.inference_mode():
            return net(torch.from_numpy(state)).tolist()

    def learn(states: np.ndarray, actions: np.ndarray, advantages: np.ndarray) -> None:
        surprise = cross_entropy(net(torch.from_numpy(states)), torch.from_numpy(actions), reduction="none")
        loss = (surprise * torch.from_numpy(advantages)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return scores, learn


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    updates = 5 if parser.parse_args(arguments).quick else 60
    warm_up()
    torch.manual_seed(0)
    net = twolayer.TwoLayerNet(4, HIDDEN, 2, activation="tanh")
    plain = torch.nn.Sequential(torch.nn.Linear(4, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 2))
    plain.load_state_dict(net.state_dict())
    rows, ends = [], []
    for name, parts in (("plain PyTorch", with_pytorch(plain)), ("twolayer", with_twolayer(net))):
        lengths, seconds = seconds_of(lambda parts=parts: improve(*parts, updates), threads=1)
        ends.append(np.mean(lengths[-5:]))
        each = 1e6 * seconds / (8 * sum(lengths))
        rows.append((name, f"stands {lengths[0]:.0f} → {ends[-1]:.0f} steps, {each:.1f} µs a step", seconds))
    print(f"Policy gradient on cart-pole, 4-{HIDDEN}-2, {updates} updates of 8 episodes of at most {LONGEST} steps")
    report(rows)

    state, each = np.zeros(4, np.float32), []
    for scores, _ in (with_pytorch(plain), with_twolayer(net)):
        start = time.perf_counter()
        for _ in range(2000):
            scores(state)
        each.append((time.perf_counter() - start) / 2000)
    slow, fast = (1e6 * seconds for seconds in each)
    print(f"  of a step the net's answer is {slow:.1f} µs and {fast:.1f} µs: {slow / fast:.1f} ×")
    assert updates < 20 or min(ends) > 0.8 * LONGEST, "both must learn to balance"


if __name__ == "__main__":
    main()
