"""Training several independent nets at a time: :func:`fit_many`, a thread for each core, or for each net on a GPU."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from . import _native
from .training.checks import integer
from .training.data import Rows, prepare_rows
from .training.fit_run import FitRun
from .training.options import PARAMETER_NAMES, refuse_unknown
from .training.progress_of_many import ManyProgressLine
from .training.results import History, NonFiniteLossError, TrainingInterrupted

_WAIT = 0.1  # seconds after which the calling thread looks around although nothing was reported


def fit_many(
    nets: Any,
    x: Any,
    y: Any,
    *,
    lr: Any = 1e-2,
    seed: Any = 0,
    epochs: Any = 1,
    validation: Any = None,
    early_stopping: Any = None,
    callback: Callable[[int, int, History], object] | None = None,
    progress: bool = False,
    threads: int | None = None,
    sample_weight: Any = None,
    **options: Any,
) -> list[History]:
    """Train independent nets on the same data, as many at a time as there are cores, and return each one's history.

    Each net ends with the bits that :func:`twolayer.fit` with its options gives it, and so does its :class:`History`,
    all but ``seconds``.

    Args:
        nets: a list, tuple or ``nn.ModuleList`` of nets as :func:`twolayer.fit` takes them, of any kinds and hidden
            sizes, all where the data are. No two may be the same, or share memory that either trains.
        x, y: as for ``fit``, but no iterable of batches. What must be checked and converted is so once, not per net.
        lr, seed, epochs, early_stopping, sample_weight, options: as for ``fit``, for all nets; or a list, tuple, range
            or one-dimensional array with a value for each net (``betas``: a list of pairs; ``sample_weight`` and
            ``class_weight``: a list of arrays).
        validation: as for ``fit``. Of a fraction each net holds out the rows that its seed chooses.
        callback: called as ``callback(index, epoch, history)`` after each epoch of ``nets[index]``, by the thread that
            called ``fit_many``, one call at a time, while the other nets train on. True ends that net's training.
        progress: show a line with the time left on standard error.
        threads: how many in all, by default all cores this process may use. A net has one of them; where there are
            fewer nets than threads, an equal share. Nets on a GPU train all at once, up to 64, whatever this says: each
            has a cluster of the GPU's multiprocessors, and its thread waits for that.

    Nets wait for their turn in order. A loss that is not finite ends that net's training only; when all others are
    through, :class:`NonFiniteLossError` is raised, with the ``net``'s index and all ``histories``. Ctrl-C, and whatever
    a callback or a schedule raises, ends all: each net is left at its last finished step, those whose turn had not come
    as they were, and ``TrainingInterrupted.histories`` tells how far each came. Functions given as ``lr_schedule`` are
    called by several threads. Wrong arguments raise ``TypeError`` or ``ValueError``, naming the argument and the net,
    before anything is changed.
    """
    refuse_unknown(options, inspect.signature(fit_many).parameters)
    nets = _as_list(nets)
    if y is None:
        raise TypeError("y must be a torch.Tensor or a NumPy array; without it x would be batches, which fit takes")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable; got {type(callback).__name__}")
    threads = _native.num_threads() if threads is None else integer("threads", threads, minimum=1, bits=31)
    own = {"lr": lr, "seed": seed, "epochs": epochs, "early_stopping": early_stopping, "sample_weight": sample_weight}
    values = {name: _for_each(name, value, len(nets)) for name, value in {**own, **options}.items()}
    team = _Team(callback)
    shared = _SharedRows()
    for index, net in enumerate(nets):
        try:
            run = FitRun(
                net,
                x,
                y,
                validation=validation,
                callback=None if callback is None else team.asks(index),
                prepare=shared,
                threads=max(1, threads // len(nets)),
                **{name: value[index] for name, value in values.items()},
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"nets[{index}]: {error}") from error
        team.runs.append(run)
    _refuse_shared_memory(team.runs)
    with ManyProgressLine([run.epochs for run in team.runs], enabled=progress) as line:
        return team.train(threads, line)


def _as_list(nets: Any) -> list[Any]:
    torch = sys.modules.get("torch")
    if not isinstance(nets, (list, tuple)) and not (torch and isinstance(nets, torch.nn.ModuleList)):
        raise TypeError(f"nets must be a list, tuple or nn.ModuleList of nets; got {type(nets).__name__}")
    return list(nets)


def _for_each(name: str, value: Any, count: int) -> list[Any]:
    """Return an option's value for each net."""
    given = isinstance(value, (list, range)) or (isinstance(value, tuple) and name != "betas")
    if isinstance(value, np.ndarray) and name not in ("sample_weight", "class_weight"):
        given = value.ndim == 1
    if not given:
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one value, or one for each of the {count} nets; got {len(value)}")
    return list(value)


class _SharedRows:
    """:func:`prepare_rows` that makes the same thing of the same arguments once."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[Rows, tuple[Any, ...]]] = {}

    def __call__(self, x: Any, y: Any, **how: Any) -> Rows:
        arrays = x, y, how["sample_weight"], how["class_weight"]  # kept, so that their ids stay theirs
        rest = [how[name] for name in ("place", "in_features", "out_features", "dtype", "ignore_index", "scaled")]
        key = (*map(id, arrays), how["loss"].name, *rest)
        if key not in self._made:
            self._made[key] = prepare_rows(x, y, **how), arrays
        return self._made[key][0]


class _Extent(NamedTuple):
    """Where a parameter lies in memory."""

    start: int
    end: int
    net: int
    name: str
    trained: bool


def _refuse_shared_memory(runs: list[FitRun]) -> None:
    """Raise ``ValueError`` where two nets hold the same memory and one of them would write to it."""
    seen: dict[int, int] = {}
    for index, run in enumerate(runs):
        if (first := seen.setdefault(id(run.session.net), index)) != index:
            raise ValueError(f"nets must be different ones; nets[{first}] and nets[{index}] are the same")
    reaches: dict[bool, _Extent] = {}  # of those before, trained or not, the one that ends last
    for extent in sorted(_extents(runs)):
        for trained, other in reaches.items():
            if extent.start < other.end and extent.net != other.net and (trained or extent.trained):
                raise ValueError(
                    f"nets must not share memory that is trained; nets[{other.net}]'s {other.name} and "
                    f"nets[{extent.net}]'s {extent.name} do"
                )
        if extent.trained not in reaches or extent.end > reaches[extent.trained].end:
            reaches[extent.trained] = extent


def _extents(runs: list[FitRun]) -> Iterator[_Extent]:
    for index, run in enumerate(runs):
        parameters = run.session.parameters
        for name, array in zip(PARAMETER_NAMES, parameters.arrays(), strict=True):
            if array is not None:
                start, size = parameters.place.extent(array)
                yield _Extent(start, start + size, index, name, name not in parameters.frozen)


class _Stopped(BaseException):
    """Ends a net's training because all are to end."""


class _Question(NamedTuple):
    """A worker's call of the callback; it waits for the answer."""

    net: int
    epoch: int
    history: History
    answer: SimpleQueue[Any]


class _Finished(NamedTuple):
    """A net's training is over; what it raised, or None."""

    net: int
    error: BaseException | None


class _Team:
    """Worker threads that take one run after the other, and the calling thread, which answers and listens to them."""

    def __init__(self, callback: Callable[[int, int, History], object] | None) -> None:
        self.runs: list[FitRun] = []
        self._callback = callback
        self._events: SimpleQueue[_Question | _Finished] = SimpleQueue()
        self._stopped = False
        self._waiting: deque[int] = deque()
        self._contexts: list[AbstractContextManager[object]] = []  # of each run, for the worker that takes it
        self._not_finite: dict[int, NonFiniteLossError] = {}

    def asks(self, net: int) -> Callable[[int, History], object]:
        """Return the callback of that net's run: it has the calling thread call the user's."""
        answer: SimpleQueue[Any] = SimpleQueue()

        def ask(epoch: int, history: History) -> object:
            self._events.put(_Question(net, epoch, history, answer))
            while True:
                try:
                    return answer.get(timeout=_WAIT / 4)
                except Empty:
                    self._check()

        return ask

    def train(self, cores: int, line: ManyProgressLine) -> list[History]:
        """Train all; return their histories, or raise what ended them. So many threads may compute on the CPU."""
        histories = [run.history for run in self.runs]
        places = [run.session.parameters.place for run in self.runs]
        self._contexts = [place.here() for place in places]
        workers = max((place.at_once(len(places), cores) for place in places), default=0)
        self._waiting = deque(range(len(self.runs)))
        threads = [
            threading.Thread(target=self._work, name="twolayer-net", args=(line,), daemon=True) for _ in range(workers)
        ]
        try:
            for thread in threads:
                thread.start()
            self._listen(line)
            for thread in threads:
                thread.join()
        except KeyboardInterrupt as interrupt:
            self._stop(threads)
            raise TrainingInterrupted(*histories) from interrupt
        except BaseException:
            self._stop(threads)
            raise
        if self._not_finite:
            net = min(self._not_finite)
            raise self._not_finite[net].among(net, histories) from self._not_finite[net]
        return histories

    def _listen(self, line: ManyProgressLine) -> None:
        """Answer the workers until all runs are over."""
        left = len(self.runs)
        while left:
            try:
                event = self._events.get(timeout=_WAIT)
            except Empty:
                line.show()
                continue
            if isinstance(event, _Question):
                assert self._callback is not None
                event.answer.put(self._callback(event.net, event.epoch, event.history))
                continue
            left -= 1
            if isinstance(event.error, NonFiniteLossError):
                self._not_finite[event.net] = event.error
            elif event.error is not None:
                raise event.error
            line.net_done(event.net, self.runs[event.net].history)

    def _stop(self, threads: list[threading.Thread]) -> None:
        """Have all runs end at the step under way, and wait for that, through further Ctrl-Cs."""
        self._stopped = True
        for thread in threads:
            while thread.is_alive():
                try:
                    thread.join()
                except KeyboardInterrupt:
                    continue

    def _check(self, steps_done: int = 0) -> None:
        if self._stopped:
            raise _Stopped

    def _work(self, line: ManyProgressLine) -> None:
        """A worker: train the nets whose turn it is until there are no more."""
        while not self._stopped:
            try:
                net = self._waiting.popleft()
            except IndexError:
                return
            error: BaseException | None = None
            try:
                self._train(net, line)
            except BaseException as raised:  # the calling thread raises it
                error = raised
            self._events.put(_Finished(net, error))

    def _train(self, net: int, line: ManyProgressLine) -> None:
        run, steps = self.runs[net], self.runs[net].data.steps_per_epoch or 1

        def on_epoch(epoch: int, history: History) -> None:
            line.done[net] = epoch + 1
            self._check()

        def on_progress(steps_done: int) -> None:
            line.done[net] = len(run.history.loss) + steps_done / steps
            self._check()

        with self._contexts[net]:
            run.train(on_epoch, on_progress, self._check)
