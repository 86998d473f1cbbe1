"""Native training: :func:`fit`, and :class:`Trainer` for loops of one's own.

Each epoch is one call of the native engine, without the GIL: there batches are drawn, the forward and backward passes
and the loss computed, and the weights updated. Where the native library is not loaded, NumPy does the same. A net on a
GPU is trained there, by an engine of the same meaning.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .training.checks import integer
from .training.fit_run import FitRun
from .training.options import check_options, refuse_unknown
from .training.progress import ProgressLine
from .training.results import History, TrainingInterrupted
from .training.session import Session
from .training.stopping import EarlyStopping


class Trainer:
    """Trains a net step by step or epoch by epoch, keeping the optimiser's state in between.

    ``net`` is a :class:`twolayer.TwoLayerNet` or the equal ``nn.Sequential`` on the CPU or a GPU, or a
    :class:`twolayer.NumpyNet`; float32 or float64. Its own parameters are trained: when a method returns they hold the
    result. The options are :func:`fit`'s. Wrong ones raise ``TypeError`` or ``ValueError``, naming the argument, before
    anything is changed. Where a net on a GPU cannot be trained, a ``RuntimeError`` says why.
    """

    def __init__(self, net: Any, *, class_weight: Any = None, **options: Any) -> None:
        refuse_unknown(options)
        self._session = Session(net, check_options(**options), class_weight)

    @property
    def steps(self) -> int:
        """The number of updates made so far."""
        return self._session.steps

    def step(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Take one step on a batch x (rows, in), y as :func:`fit` takes it; return its loss before the update.

        A learning-rate schedule counts each such step as an epoch.
        """
        session = self._session
        rows = session.prepare(x, y, sample_weight)
        with session.stored():
            return session.run_batch(rows, session.steps, 0, 1)

    def epoch(self, x: Any, y: Any, sample_weight: Any = None) -> float:
        """Train one epoch on x (rows, in) and y, in batches; return its mean loss as ``History.loss`` defines it.

        An epoch that was interrupted is taken up where it stopped, and the mean is over what is left of it.
        """
        rows = self._session.prepare(x, y, sample_weight)
        with self._session.stored():
            return self._session.run_epoch(rows, None, None)[0]

    def evaluate(self, x: Any, y: Any, sample_weight: Any = None) -> dict[str, float]:
        """Return the ``loss`` on x and y and, for classes, the ``accuracy``. The net is not changed."""
        rows = self._session.prepare(x, y, sample_weight)
        return self._session.evaluate(rows, None)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later run needs beside the net's own weights to go on as if never interrupted.

        ``steps`` and ``epochs`` taken, ``epoch_step``: batches taken of an interrupted epoch, and ``state``: by
        torch.optim's names (``momentum_buffer``, ``exp_avg`` …) the arrays by parameter (w1, b1, w2, b2); of a net on a
        GPU they are tensors there.
        """
        session = self._session
        counts = {"steps": session.steps, "epochs": session.epochs, "epoch_step": session.epoch_step}
        return {**counts, "state": session.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the trainer that gave ``state_dict`` stopped; the net's own weights are loaded beside it.

        Arrays may come from another device, or be NumPy's.
        """
        expected = {"steps", "epochs", "epoch_step", "state"}
        if not isinstance(state_dict, dict) or set(state_dict) != expected:
            given = sorted(state_dict) if isinstance(state_dict, dict) else type(state_dict).__name__
            raise ValueError(f"state_dict must be a dictionary of {', '.join(sorted(expected))}; got {given}")
        counts = {name: integer(f"state_dict's {name}", state_dict[name], minimum=0) for name in expected - {"state"}}
        self._session.load_state(state_dict["state"], counts["steps"])
        self._session.epochs, self._session.epoch_step = counts["epochs"], counts["epoch_step"]

    def to_torch_optimizer(self) -> Any:
        """Return the ``torch.optim`` object that would go on from here, with the same options and state."""
        from .training.torch_optim import make_optimizer

        return make_optimizer(self._session.net, self._session.options, self.state_dict())

    def from_torch_optimizer(self, optimizer: Any) -> None:
        """Take over the state of a ``torch.optim`` object of the trainer's kind, built on the net's parameters."""
        from .training.torch_optim import read_state

        steps, state = read_state(self._session.net, optimizer, self._session.options)
        self._session.load_state(state, steps)


def fit(
    net: Any,
    x: Any,
    y: Any = None,
    *,
    loss: str = "cross_entropy",
    optimizer: str = "sgd",
    lr: float = 1e-2,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    batch_size: int = 64,
    epochs: int = 1,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    validation: Any = None,
    early_stopping: EarlyStopping | None = None,
    lr_schedule: Any = None,
    callback: Callable[[int, History], object] | None = None,
    progress: bool = False,
    threads: int | None = None,
    precision: str | None = None,
    sample_weight: Any = None,
    **options: Any,
) -> History:
    """Train ``net`` in place, whole epochs at a time in native code, and return the :class:`History`.

    Args:
        net: a :class:`twolayer.TwoLayerNet` or the equal ``nn.Sequential`` on the CPU or a GPU, or a
            :class:`twolayer.NumpyNet`; float32 or float64. A parameter that does not require grad is left as it is. For
            a net on a GPU all data must be dense tensors there; nothing is moved.
        x: (rows, in_features): a torch tensor or a NumPy array, memory-mapped too, of float32, float64, bfloat16 or
            uint8 (other numbers are converted), or a CSR matrix of scipy or torch. Or an iterable of batches (x, y),
            such as a ``DataLoader``, gone through once per epoch as it comes; then ``y`` is left out.
        y: for ``cross_entropy`` integer classes (rows,) or distributions (rows, out_features); for the other losses
            values (rows, out_features), or (out_features,), the same for all rows.
        loss: a name in :data:`twolayer.registry.LOSSES`, with the arithmetic of its namesake in torch.nn.functional and
            reduction "mean"; ``mse_sum`` is the sum of squares.
        optimizer: a name in :data:`twolayer.registry.OPTIMIZERS`, with the arithmetic of its namesake in torch.optim.
        lr, momentum, nesterov, weight_decay, betas, eps: as there; their defaults here are the same for all optimisers.
        l1, l2: add l1·Σ|W| + l2/2·ΣW² over w1 and w2 to the loss.
        batch_size, epochs: rows per step, and passes over the data.
        shuffle, seed: whether each epoch takes the rows in a new order; epoch e (from 0) takes
            :func:`twolayer.reference.numpy.permutation` ``(rows, seed, e)``. Without it rows are taken as they stand.
        drop_last: leave out an epoch's last batch when it is short.
        validation: (x, y), or the fraction of the rows to hold out: the last of the permutation of epoch 2⁶⁴ − 1.
        early_stopping: a :class:`twolayer.EarlyStopping`.
        lr_schedule: one of :mod:`twolayer.training.schedules`, or a function epoch → lr.
        callback: called as ``callback(epoch, history)`` after each epoch, with the net up to date; True ends training.
        progress: show a line with the time left on standard error.
        threads: at most so many; by default all cores this process may use. The result does not depend on it.
        precision: None for the net's own, or "bfloat16": the factors of products are rounded to bfloat16, while
            weights, sums and the optimiser's state stay float32.
        sample_weight: (rows,), what each row counts for; the mean is divided by their sum.
        options: ``dampening``, ``amsgrad``, ``alpha``, ``centered``, ``lr_decay``, ``initial_accumulator_value`` as in
            torch.optim; ``label_smoothing``, ``ignore_index``, ``class_weight`` (out_features,) for cross_entropy;
            ``loss_beta`` where smooth_l1 and huber turn linear; ``clip_norm``, ``clip_value`` of the gradient;
            ``eps_hat``: Adam's eps is added before the correction of the mean square, and ``penalty_per_row``: l1 and
            l2 are divided by the sum of the batch's sample weights, both as scikit-learn does;
            ``dropout`` of hidden values; ``input_scale``, ``input_shift``: what x is multiplied by and then added;
            ``skip_zeros``: whether products go through the nonzero inputs only (None: as each batch's density suggests;
            the result is the same to the bit); ``nonfinite``: "raise" (:class:`NonFiniteLossError`) or "continue".

    Ctrl-C raises :class:`TrainingInterrupted`, with the net at the last finished step. Wrong arguments raise
    ``TypeError`` or ``ValueError`` before anything is changed; where a net on a GPU cannot be trained, a
    ``RuntimeError`` says why.
    """
    refuse_unknown(options, inspect.signature(fit).parameters)
    run = FitRun(
        net,
        x,
        y,
        epochs=epochs,
        validation=validation,
        early_stopping=early_stopping,
        callback=callback,
        sample_weight=sample_weight,
        loss=loss,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        l1=l1,
        l2=l2,
        betas=betas,
        eps=eps,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        lr_schedule=lr_schedule,
        threads=threads,
        precision=precision,
        **options,
    )
    with ProgressLine(run.epochs, run.data.steps_per_epoch, enabled=progress) as line:
        try:
            run.train(line.epoch_done, line.on_progress if progress else None)
        except KeyboardInterrupt as interrupt:
            raise TrainingInterrupted(run.history) from interrupt
    return run.history
