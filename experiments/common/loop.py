"""The training loop: a pure step, scanned on the device, donated, checkpointed and resumable.

    def step(state, batch, key) -> (state, metrics)

is the whole contract. The state is any pytree (a momentum encoder and its queue, a simulator and
its replay memory, plain parameters); nothing here takes a gradient, so the step may compute its
update by whatever rule the paper has. Randomness comes only from `key`, which is derived from the
seed and the step's number: a resumed run repeats exactly what the uninterrupted one would do.
"""

import dataclasses
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import checkpoints, mesh, metrics, terminal
from experiments.common.errors import Interrupted, UserError

Step = Callable[[Any, Any, jax.Array], tuple[Any, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Resident:
    """Training data that lives on the device.

    Attributes:
      data: A pytree of arrays.
      sample: `sample(data, key, step) -> batch`, traced into the loop.
      per_seed: Whether the arrays have a leading axis of seeds, so that each seed has its own data.
    """

    data: Any
    sample: Callable[[Any, jax.Array, jax.Array], Any]
    per_seed: bool = False


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Training data that is made on the host while the device trains; all seeds see the same.

    Attributes:
      fetch: `fetch(step) -> batch` of numpy arrays; a function of the step alone, so that a resumed
        run sees what the uninterrupted one would.
    """

    fetch: Callable[[int], Any]


class Trained(NamedTuple):
    """What `fit` returns.

    Attributes:
      state: The final state with a leading axis of seeds.
      seconds: Wall-clock seconds over all resumptions, compilation included.
    """

    state: Any
    seconds: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measurements of the state at regular steps, for learning curves.

    Attributes:
      measure: `measure(state, key) -> metrics` for one seed; traced.
      every: Steps between measurements; step 0 and the last step are measured too.
    """

    measure: Callable[[Any, jax.Array], dict[str, jax.Array]]
    every: int


def once(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Like jax.jit, for a program that runs once: compiled fast rather than to run fast.

    Args:
      function: Makes data or an initial state.
      **options: For jax.jit.

    Returns:
      The compiled function.
    """
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def fit(
    step: Step,
    init: Callable[..., Any],
    *,
    num_steps: int,
    seed_keys: jax.Array,
    folder: Path,
    description: str,
    log_every: int,
    checkpoint_every: int,
    batches: Resident | Streamed | None = None,
    evaluation: Evaluation | None = None,
    devices: jax.sharding.Mesh | None = None,
    shown: str = "loss",
    map_seeds: bool = False,
    start: Any = None,
) -> Trained:
    """Train all seeds in one compiled program; resume if the folder holds a checkpoint.

    Args:
      step: Pure function of one seed's state, batch (None without `batches`) and key.
      init: One seed's initial state from its key.
      num_steps: Steps in all.
      seed_keys: One key a seed, shape (num_seeds,).
      folder: Where `checkpoints/` and `metrics.jsonl` go.
      description: What the progress bar says.
      log_every: Steps a dispatch; their metrics are averaged into one line.
      checkpoint_every: Steps between checkpoints.
      batches: Where batches come from.
      evaluation: Measurements for learning curves.
      devices: Devices that share each batch; all by default.
      shown: The metric beside the progress bar.
      map_seeds: Train the seeds one after the other inside the program instead of side by side:
        less memory, and faster where batching over different weights is slow.
      start: What `init` gets beside the key, with a leading axis of seeds: for instance the
        parameters of an earlier training.

    Returns:
      The final state and the time that it took.

    Raises:
      UserError: A metric is not finite, a batch does not fit the devices, or the disk is full.
      Interrupted: SIGTERM or Ctrl-C came; the state has been saved.
    """
    devices = devices or mesh.make()
    run = _Program(step, init, batches, evaluation, devices, seed_keys, log_every, map_seeds, start)
    store = checkpoints.Checkpoints(folder / "checkpoints")
    try:
        with _Signals() as signals:
            return _fit(
                run, store, signals, num_steps, folder, description, checkpoint_every, shown
            )
    finally:
        store.close()


def _fit(
    run: "_Program",
    store: checkpoints.Checkpoints,
    signals: "_Signals",
    num_steps: int,
    folder: Path,
    description: str,
    checkpoint_every: int,
    shown: str,
) -> Trained:
    restored = store.restore(run.like)
    done = restored.step if restored else 0
    if restored:
        state = mesh.replicate(run.devices, restored.state)
        if done < num_steps:
            terminal.say(f"{description}: resuming at step {done} of {num_steps}")
    else:
        state = run.initial()
    spent = restored.extra["seconds"] if restored else 0.0
    if done >= num_steps:
        return Trained(state, spent)
    started = time.monotonic()
    writer = metrics.MetricsWriter(folder, done)
    bar = terminal.progress(description, num_steps, done=done)
    evaluate_every = run.evaluation.every if run.evaluation else num_steps
    pending: list[tuple[int, int, Any]] = []

    def consume() -> None:
        """Wait for the dispatch before the current one, check it and write it down."""
        while pending:
            first, last, buffer = pending.pop(0)
            values = {name: np.asarray(v)[: last - first] for name, v in buffer.items()}
            _check_finite(values, first)
            means = {name: v.mean(axis=0) for name, v in values.items()}
            writer.write(last, means)
            bar.update(last - first)
            if shown in means:
                bar.set_postfix_str(f"{shown} {means[shown].mean():.4g}", refresh=False)

    def measure(at: int) -> None:
        values = {name: np.asarray(v) for name, v in run.measure(state, at).items()}
        _check_finite({name: v[None] for name, v in values.items()}, at - 1)
        writer.write(at, values)

    try:
        with bar, run.feed(done, num_steps, checkpoint_every, evaluate_every) as feed:
            if run.evaluation and done == 0:
                measure(0)
            for first, last, batch in feed:
                state, buffer = run.dispatch(state, batch, first, last)
                consume()
                pending.append((first, last, buffer))
                due = last % checkpoint_every == 0 or last == num_steps
                if due or signals.received or (run.evaluation and last % evaluate_every == 0):
                    consume()
                if run.evaluation and (last % evaluate_every == 0 or last == num_steps):
                    measure(last)
                if due or signals.received:
                    seconds = spent + time.monotonic() - started
                    store.save(last, state, {"seconds": seconds})
                if signals.received and last < num_steps:
                    store.wait()
                    raise Interrupted(f"stopped at step {last}; the same command resumes")
        store.wait()
    finally:
        writer.close()
    return Trained(state, spent + time.monotonic() - started)


def _check_finite(values: dict[str, np.ndarray], first: int) -> None:
    for name, v in values.items():
        bad = ~np.isfinite(v).reshape(len(v), -1).all(axis=1)
        if bad.any():
            at = first + int(np.argmax(bad)) + 1
            raise UserError(
                f"{name} is not finite at step {at}: the data holds NaN or the training diverged"
            )


class _Program:
    """The compiled pieces of one training run."""

    def __init__(
        self,
        step: Step,
        init: Callable[..., Any],
        batches: Resident | Streamed | None,
        evaluation: Evaluation | None,
        devices: jax.sharding.Mesh,
        seed_keys: jax.Array,
        chunk: int,
        map_seeds: bool,
        start: Any = None,
    ) -> None:
        self.devices = devices
        self.evaluation = evaluation
        self._batches = batches
        self._chunk = chunk
        self._keys = mesh.replicate(devices, seed_keys)
        everywhere = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
        over_seeds = _over_seeds(seed_keys.shape[0], map_seeds)

        resident = batches if isinstance(batches, Resident) else None
        self._data = mesh.replicate(devices, resident.data) if resident else None
        data_axis = 0 if resident and resident.per_seed else None

        def one_seed(state: Any, data: Any, streamed: Any, key: jax.Array, at: jax.Array) -> Any:
            sample_key, step_key = jax.random.split(jax.random.fold_in(key, at))
            batch = resident.sample(data, sample_key, at) if resident else streamed
            return step(state, mesh.share_batch(devices, batch), step_key)

        # jit remembers the trace: the shapes of the metrics and the loop's body need only one.
        seeds_step = jax.jit(over_seeds(one_seed, (0, data_axis, None, 0, None)), inline=True)

        def many_steps(
            state: Any, data: Any, stacked: Any, keys: jax.Array, first: jax.Array, last: jax.Array
        ) -> Any:
            def at(i: jax.Array) -> Any:
                return jax.tree.map(lambda x: x[i - first], stacked)

            _, shapes = jax.eval_shape(seeds_step, state, data, at(first), keys, first)
            buffer = {n: jnp.zeros((chunk, *s.shape), s.dtype) for n, s in shapes.items()}

            def body(i: jax.Array, carry: Any) -> Any:
                state, buffer = carry
                state, values = seeds_step(state, data, at(i), keys, i)
                put = jax.lax.dynamic_update_index_in_dim
                return state, {n: put(buffer[n], v, i - first, 0) for n, v in values.items()}

            # The bounds are traced, so that a shorter last dispatch runs the same program.
            return jax.lax.fori_loop(first, last, body, (state, buffer))

        self._many_steps = jax.jit(many_steps, donate_argnums=0, out_shardings=everywhere)

        def strong_init(*of_seed: Any) -> Any:
            # Weak types would make the second dispatch another program than the first.
            return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), init(*of_seed))

        self._given: tuple[Any, ...] = (self._keys,)
        if start is not None:
            self._given += (mesh.replicate(devices, start),)
        axes = (0,) * len(self._given)
        self._init = once(over_seeds(strong_init, axes), out_shardings=everywhere)
        self.like = jax.eval_shape(over_seeds(init, axes), seed_keys, *self._given[1:])
        if evaluation:

            def one_measurement(state: Any, key: jax.Array, at: jax.Array) -> Any:
                # Negative: never a training step's key.
                return evaluation.measure(state, jax.random.fold_in(key, ~at))

            self._measure = jax.jit(
                over_seeds(one_measurement, (0, 0, None)), out_shardings=everywhere
            )

    def initial(self) -> Any:
        return self._init(*self._given)

    def dispatch(self, state: Any, stacked: Any, first: int, last: int) -> Any:
        bounds = np.int32(first), np.int32(last)
        return self._many_steps(state, self._data, stacked, self._keys, *bounds)

    def measure(self, state: Any, at: int) -> Any:
        return self._measure(state, self._keys, np.int32(at))

    def feed(self, done: int, num_steps: int, *every: int) -> "_Feed":
        fetch = self._batches.fetch if isinstance(self._batches, Streamed) else None
        return _Feed(
            _ranges(done, num_steps, self._chunk, *every), fetch, self._chunk, self.devices
        )


def _over_seeds(num_seeds: int, map_seeds: bool) -> Callable[..., Any]:
    """A transformation like vmap; one seed runs unbatched, which some kernels do better."""

    def transform(f: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
        if num_seeds > 1 and not map_seeds:
            return jax.vmap(f, axes)

        def mapped(*args: Any) -> Any:
            batched = [a for a, axis in zip(args, axes, strict=True) if axis == 0]

            def one(parts: Any) -> Any:
                rest = iter(parts)
                return f(
                    *[next(rest) if axis == 0 else a for a, axis in zip(args, axes, strict=True)]
                )

            if num_seeds == 1:
                only = one(jax.tree.map(lambda x: x[0], batched))
                return jax.tree.map(lambda x: x[None], only)
            return jax.lax.map(one, batched)

        return mapped

    return transform


def _ranges(done: int, num_steps: int, *every: int) -> Iterator[tuple[int, int]]:
    """Dispatches [first, last) that end at every multiple of each interval."""
    while done < num_steps:
        last = min([num_steps] + [done - done % n + n for n in every])
        yield done, last
        done = last


class _Feed:
    """Iterates over dispatches with their stacked batches, made ahead by a thread when streamed."""

    def __init__(self, ranges: Iterator, fetch: Any, chunk: int, devices: Any) -> None:
        self._ranges = ranges
        self._fetch = fetch
        self._chunk = chunk
        self._devices = devices
        self._ready: queue.Queue = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "_Feed":
        if self._fetch is not None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._thread is not None:
            while self._thread.is_alive():
                with self._ready.mutex:
                    self._ready.queue.clear()
                    self._ready.not_full.notify_all()
                self._thread.join(0.05)

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        if self._thread is None:
            for first, last in self._ranges:
                yield first, last, None
            return
        while (item := self._ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _work(self) -> None:
        try:
            for first, last in self._ranges:
                rows = []
                for i in range(first, last):
                    if self._stop.is_set():
                        return
                    rows.append(self._fetch(i))
                # Short dispatches are padded, so that the program keeps its shapes.
                rows += [rows[-1]] * (self._chunk - len(rows))
                stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)
                self._ready.put((first, last, mesh.replicate(self._devices, stacked)))
            self._ready.put(None)
        except Exception as error:
            self._ready.put(error)


class _Signals:
    """Remembers SIGTERM and Ctrl-C until the state can be saved; a second one stops at once."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> "_Signals":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        terminal.warn("saving before stopping (again to stop at once)")
