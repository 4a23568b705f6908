"""One step of every network of a seed, and the kernels that are kept while they learn."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.task_geometry import tasks
from experiments.task_geometry.network import Network, Params
from experiments.task_geometry.settings import ACTIVATIONS

_MOST_SNAPSHOTS = 30


class State(NamedTuple):
    """All networks of one seed.

    Attributes:
      params: Their parameters.
      optimizer: State of the optimiser.
      kernels: Of the last hidden layer at the end of epochs (T, C, A, W, P, P).
      tasks: What is learnt, which does not change.
    """

    params: Params
    optimizer: Any
    kernels: jax.Array
    tasks: tasks.Tasks


def snapshot_epochs(epochs: int) -> np.ndarray:
    """After which epochs kernels are kept: all of them, or some 30 at equal distances.

    Args:
      epochs: In all.

    Returns:
      Rising numbers of epochs, the last of which is `epochs`.
    """
    every = -(-epochs // _MOST_SNAPSHOTS)
    return np.minimum(every * np.arange(1, -(-epochs // every) + 1), epochs)


class Learner:
    """The networks and their update.

    Args:
      config: The experiment's settings.
      source: The tasks.
    """

    def __init__(self, config: Any, source: tasks.Source) -> None:
        self.network = Network(
            tuple(ACTIVATIONS[name] for name in config.names),
            config,
            num_cells=len(source.cells),
            dim=source.dim,
            outputs=source.tasks.targets.shape[-1],
            side=source.side,
        )
        self._average = source.average
        self._every = -(-config.epochs // _MOST_SNAPSHOTS)
        self._snapshots = len(snapshot_epochs(config.epochs))
        self._fixed = {"readout"} if config.readout == "fixed" else set()
        self._optimizer = {
            "sgd": optax.sgd,
            "rms": lambda rate: optax.rmsprop(rate, decay=0.99),
            "adam": optax.adam,
        }[config.optimizer](config.learning_rate)

    def init(self, key: jax.Array, drawn: tasks.Tasks) -> State:
        """One seed before training.

        Args:
          key: The seed's key.
          drawn: Its tasks.

        Returns:
          The state.
        """
        params = self.network.init(key)
        kernels = self.kernels(params, drawn)[-1]
        return State(
            params=params,
            optimizer=self._optimizer.init(self._learning(params)),
            kernels=jnp.zeros((self._snapshots, *kernels.shape), kernels.dtype),
            tasks=drawn,
        )

    def step(
        self, state: State, batch: tasks.Batch, key: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One descent along the gradient of the loss that is SUMMED over the outputs.

        Args:
          state: Of one seed.
          batch: Its samples.
          key: Not used: samples are drawn once, before training.

        Returns:
          The next state, and the loss that is averaged over outputs and networks.
        """
        del key
        drawn = state.tasks
        of_condition = tasks.conditions(batch.place, drawn.counts)
        inputs = _taken(drawn.means, of_condition) + batch.inputs
        targets = _taken(drawn.targets, of_condition)

        def loss(learning: Params) -> tuple[jax.Array, jax.Array]:
            params = {**state.params, **learning}
            logits = self.network.logits(params, self.network.hidden(params, inputs)[-1])
            errors = jnp.logaddexp(0, logits) - targets[:, None, None] * logits
            outputs = drawn.outputs[:, None, None]
            summed = jnp.einsum("cawbk,b->cawk", errors, batch.weight) * outputs
            mean = jnp.sum(summed, axis=-1) / jnp.sum(outputs, axis=-1)
            return jnp.sum(summed), jnp.mean(mean)

        learning = self._learning(state.params)
        gradient, mean = jax.grad(loss, has_aux=True)(learning)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, learning)
        params = {**state.params, **optax.apply_updates(learning, updates)}
        kernels = jax.lax.cond(
            batch.last,
            lambda kept: kept.at[batch.epoch // self._every].set(self.kernels(params, drawn)[-1]),
            lambda kept: kept,
            state.kernels,
        )
        return State(params, optimizer, kernels, drawn), {"loss": mean}

    def kernels(self, params: Params, drawn: tasks.Tasks) -> list[jax.Array]:
        """Inner products of the conditions' representations.

        Args:
          params: Of one seed.
          drawn: Its tasks.

        Returns:
          One array a layer (C, A, W, P, P).
        """
        layers = self.network.hidden(params, drawn.probes)
        return [self._kernel(layer) for layer in layers]

    def input_kernels(self, drawn: tasks.Tasks) -> jax.Array:
        """The same of the inputs themselves.

        Args:
          drawn: The tasks of one seed.

        Returns:
          Kernels (C, P, P).
        """
        return self._kernel(drawn.probes)

    def _kernel(self, points: jax.Array) -> jax.Array:
        means = jnp.matmul(self._average, points, precision=jax.lax.Precision.HIGHEST)
        return jnp.matmul(means, jnp.swapaxes(means, -1, -2), precision=jax.lax.Precision.HIGHEST)

    def _learning(self, params: Params) -> Params:
        return {name: value for name, value in params.items() if name not in self._fixed}


def _taken(rows: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(rows, places[..., None], axis=1)
