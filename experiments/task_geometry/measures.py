"""The geometry of what the networks have learnt."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from asym import similarity
from experiments.common import terminal
from experiments.task_geometry import splits, tasks, training

ALIGNMENTS = ("input_alignment", "target_alignment")
OF_KERNEL = (*ALIGNMENTS, "parallelism", "dimension")
OF_POINTS = ("sparsity", "accuracy", "ccgp", "shattering")


class Kernels(NamedTuple):
    """What hidden kernels are compared with.

    Attributes:
      inputs: (P, P).
      targets: (P, P).
      labels: The first dichotomy (P,).
    """

    inputs: jax.Array
    targets: jax.Array
    labels: jax.Array


def of_kernel(kernel: jax.Array, others: Kernels) -> jax.Array:
    """What a kernel of the conditions tells.

    Args:
      kernel: Hidden kernel (P, P).
      others: The kernels of inputs and targets.

    Returns:
      The values of `OF_KERNEL`.
    """
    pairing: Literal["exhaustive", "assignment"]
    pairing = "exhaustive" if len(others.labels) <= 8 else "assignment"
    centred = similarity.center_kernel(kernel)
    return jnp.stack(
        [
            similarity.cka(kernel, others.inputs),
            similarity.cka(kernel, others.targets),
            similarity.parallelism_score(centred, others.labels, pairing=pairing),
            similarity.kernel_participation_ratio(centred),
        ]
    )


class Geometry:
    """Measures networks; what it compiles serves all nonlinearities.

    Args:
      learner: The networks.
      source: The tasks.
      config: The experiment's settings.
    """

    def __init__(self, learner: training.Learner, source: tasks.Source, config: Any) -> None:
        self._learner = learner
        self._source = source
        self._config = config
        self._kernels = jax.jit(jax.vmap(learner.kernels))
        self._input_kernels = jax.jit(jax.vmap(learner.input_kernels))
        over_seeds = jax.vmap(self._represent, (0, 0, None, None))
        self._represented = jax.jit(over_seeds, static_argnums=3)

    def measure(self, state: training.State, place: int) -> dict[str, np.ndarray]:
        """The geometry of all networks with one nonlinearity.

        Args:
          state: Trained, with a leading axis of seeds.
          place: Of the nonlinearity among those that were trained.

        Returns:
          `OF_KERNEL` and `OF_POINTS` (S, C, W); `alignment` of inputs and targets (S, C);
          `curve/<name>` of `OF_KERNEL` over snapshots (S, T, C, W); `layer/<name>` of `ALIGNMENTS`
          (S, C, W, layers); `mean/<name>` of `ALIGNMENTS` for the mean kernel of all seeds (C, W).
        """
        cells = self._source.cells
        groups: dict[int, list[int]] = {}
        for number, cell in enumerate(cells):
            groups.setdefault(cell.num_conditions, []).append(number)
        layers = [np.asarray(x[:, :, place]) for x in self._kernels(state.params, state.tasks)]
        snapshots = np.moveaxis(np.asarray(state.kernels[:, :, :, place]), 1, 3)
        kernels = np.concatenate([np.stack(layers, axis=3), snapshots], axis=3)
        inputs = np.asarray(self._input_kernels(state.tasks))
        found: dict[str, np.ndarray] = {}
        with terminal.progress("measuring", len(cells), unit="task", delay=5) as bar:
            for numbers in groups.values():
                made = self._of_kernels(kernels, inputs, state.tasks, numbers)
                made |= self._of_points(state, place, tuple(numbers))
                for name, value in made.items():
                    axis = {"curve": 2, "mean": 0}.get(name.split("/")[0], 1)
                    shape = [*value.shape]
                    shape[axis] = len(cells)
                    whole = found.setdefault(name, np.zeros(shape, np.float32))
                    np.moveaxis(whole, axis, 0)[numbers] = np.moveaxis(value, axis, 0)
                bar.update(len(numbers))
        return found

    def _of_kernels(
        self, kernels: np.ndarray, inputs: np.ndarray, drawn: tasks.Tasks, numbers: list[int]
    ) -> dict[str, np.ndarray]:
        """Measures of kernels (S, C, W, layers + snapshots, P, P) of some tasks."""
        count = self._source.cells[numbers[0]].num_conditions
        # Outputs that are not used are 0 for all conditions and add nothing.
        targets = np.asarray(drawn.targets)[:, numbers, :count]
        kernels = kernels[:, numbers][..., :count, :count]
        layers = kernels.shape[3] - len(training.snapshot_epochs(self._config.epochs))
        others = (
            inputs[:, numbers, :count, :count],
            targets @ targets.swapaxes(-1, -2),
            targets[..., 0],
        )
        mean = kernels[:, :, :, layers - 1].mean(axis=0)

        def for_each(x: np.ndarray) -> np.ndarray:
            """An array of seeds and tasks, once for each kernel and once for each mean kernel."""
            trailing = x.shape[2:]
            every = np.broadcast_to(x[:, :, None, None], (*kernels.shape[:4], *trailing))
            of_mean = np.broadcast_to(x.mean(axis=0)[:, None], (*mean.shape[:2], *trailing))
            flat = every.reshape(-1, *trailing), of_mean.reshape(-1, *trailing)
            return np.concatenate(flat)

        square = (-1, count, count)
        values = np.asarray(
            _compared(
                np.concatenate([kernels.reshape(square), mean.reshape(square)]),
                Kernels(*(jnp.asarray(for_each(x)) for x in others)),
            )
        )
        cut = kernels.size // count**2
        of_mean = values[cut:].reshape(*mean.shape[:2], -1)
        values = values[:cut].reshape(*kernels.shape[:4], -1)
        made = {"alignment": values[:, :, 0, 0, -1]}
        for i, name in enumerate(OF_KERNEL):
            made[name] = values[:, :, :, layers - 1, i]
            made[f"curve/{name}"] = np.moveaxis(values[:, :, :, layers:, i], 3, 1)
        for i, name in enumerate(ALIGNMENTS):
            made[f"layer/{name}"] = values[:, :, :, :layers, i]
            made[f"mean/{name}"] = of_mean[..., i]
        return made

    def _of_points(
        self, state: training.State, place: int, numbers: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        cell = self._source.cells[numbers[0]]
        each = self._config.test_samples
        hidden, accuracy, sparsity = self._represented(state, self._source.test, place, numbers)
        condition = np.repeat(np.arange(cell.num_conditions), each)
        labels = np.asarray(state.tasks.targets[..., 0])[:, list(numbers), : cell.num_conditions]
        generalised, shattered = _readouts(
            hidden,
            condition,
            labels[:, :, condition],
            # All tasks of a group have the same dichotomy.
            splits.generalisation_splits(labels[0, 0]),
            splits.balanced_dichotomies(cell.num_conditions),
        )
        values = (sparsity, accuracy, generalised, shattered)
        return dict(zip(OF_POINTS, map(np.asarray, values), strict=True))

    def _represent(
        self, state: training.State, noise: jax.Array, place: Any, numbers: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Points (C, W, H, n) of noisy samples, accuracy on them and active share (C, W)."""
        cell = self._source.cells[numbers[0]]
        count = cell.num_conditions
        chosen = np.array(numbers)
        condition = np.repeat(np.arange(count), self._config.test_samples)
        network, drawn = self._learner.network, state.tasks
        inputs = drawn.means[:, condition] + noise[: len(condition)]
        hidden = network.hidden(state.params, inputs)[-1]
        logits = network.logits(state.params, hidden)[chosen][:, place]
        targets = drawn.targets[chosen][:, None, condition]
        right = (logits > 0) == (targets > 0)
        outputs = drawn.outputs[chosen][:, None, None]
        accuracy = jnp.mean(jnp.sum(right * outputs, axis=-1) / jnp.sum(outputs, axis=-1), axis=-1)
        quiet = network.hidden(state.params, drawn.probes)[-1][chosen][:, place]
        if self._source.side is None:
            quiet = quiet[:, :, :count]
        units = jnp.array(self._config.widths) * quiet.shape[-2]
        return (
            jnp.swapaxes(hidden[chosen][:, place], -1, -2),
            accuracy,
            jnp.sum(quiet > 0, axis=(-1, -2)) / units,
        )


@jax.jit
def _compared(kernels: jax.Array, others: Kernels) -> jax.Array:
    """The values of `OF_KERNEL`, and the alignment of inputs and targets (N, measures)."""

    def one(kernel: jax.Array, others: Kernels) -> jax.Array:
        alignment = similarity.cka(others.inputs, others.targets)
        return jnp.append(of_kernel(kernel, others), alignment)

    return jax.vmap(one)(kernels, others)


def _readouts(
    hidden: jax.Array,
    condition: np.ndarray,
    labels: np.ndarray,
    trained: np.ndarray,
    dichotomies: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
    """CCGP and shattering dimension of hidden points (S, C, W, H, n), each (S, C, W)."""
    generalised = _over_tasks(_generalised, hidden, labels, condition, trained)
    # One program after the other: jaxlib 0.10 shares the factorisations out among the threads that
    # run the program and waits in one of them; where all wait, none is left to do the work.
    jax.block_until_ready(generalised)
    return generalised, _over_tasks(_shattered, hidden, labels, condition, dichotomies)


@functools.partial(jax.jit, static_argnums=0)
def _over_tasks(
    score: Callable[..., jax.Array], hidden: jax.Array, labels: ArrayLike, *given: ArrayLike
) -> jax.Array:
    over_widths = jax.vmap(lambda points, labels: score(points, labels, *given), (0, None))
    # One task after the other: the classifiers of all would need much memory.
    per_task = functools.partial(jax.lax.map, lambda task: over_widths(*task))
    return jax.lax.map(per_task, (hidden, labels))


def _generalised(
    points: jax.Array, labels: jax.Array, condition: jax.Array, trained: jax.Array
) -> jax.Array:
    return jnp.mean(similarity.ccgp(points, condition, labels, trained))


def _shattered(
    points: jax.Array, labels: jax.Array, condition: jax.Array, dichotomies: jax.Array
) -> jax.Array:
    half = jnp.arange(len(condition)) % 2 == 0
    return jnp.mean(similarity.shattering_dimension(points, condition, dichotomies, half))
