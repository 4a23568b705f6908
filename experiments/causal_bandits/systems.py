"""Random linear systems with soft interventions, their changes, and one system from files."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np

from asym import causal
from experiments.common.errors import UserError

EDGE_PROBABILITY = 0.5
SMALLEST_WEIGHT, LARGEST_WEIGHT = 0.5, 2.0
# Actions whose expected reward is this close to the best one count as optimal.
OPTIMAL = 1e-2
# A change is drawn anew until it matters; after so many draws the last one is taken.
_MOST_DRAWS = 1000
_FILES = {"B.npy": 2, "B_int.npy": 2, "nu.npy": 1, "sigma.npy": 2}


class System(NamedTuple):
    """A linear system; arrays may have further axes in front (phases, instances).

    Attributes:
      weights: B and B' by value of the bit (2, N, N).
      noise_mean: nu (N,).
      noise_scale: Standard deviations of the noise (N,).
    """

    weights: jax.Array
    noise_mean: jax.Array
    noise_scale: jax.Array

    def rewards(self, actions: jax.Array) -> jax.Array:
        """Expected reward of each action (A, N), shape (A,); no action may make a cycle."""
        return causal.path_sum_reward(
            observational=self.weights[0],
            interventional=self.weights[1],
            noise_mean=self.noise_mean,
            actions=actions,
        )


def draw_columns(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Weights of both signs, half of them 0, from smaller to larger numbers only.

    Args:
      key: Randomness.
      shape: (..., N, N).

    Returns:
      Strictly upper triangular weights.
    """
    size_key, sign_key, edge_key = jax.random.split(key, 3)
    size = jax.random.uniform(size_key, shape, minval=SMALLEST_WEIGHT, maxval=LARGEST_WEIGHT)
    edge = jax.random.bernoulli(edge_key, EDGE_PROBABILITY, shape)
    return jnp.triu(jnp.where(edge, size * jax.random.rademacher(sign_key, shape), 0), 1)


def draw(key: jax.Array, nodes: int) -> System:
    """A system as the paper draws it: every node but the first answers to its intervention.

    Args:
      key: Randomness.
      nodes: N >= 2.

    Returns:
      The system, with noise of mean 1 and deviation 1.
    """

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        key, chosen = jax.random.split(state[0])
        return key, draw_columns(chosen, (2, nodes, nodes))

    def idle(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(jnp.all(state[1][0, :, 1:] == state[1][1, :, 1:], axis=0))

    _, weights = jax.lax.while_loop(idle, again, again((key, jnp.zeros((2, nodes, nodes)))))
    return System(weights, jnp.ones(nodes), jnp.ones(nodes))


def change(key: jax.Array, system: System, columns: int) -> System:
    """The system after a change that costs the old optimal actions their rank.

    Some of the columns in force under all optimal actions are redrawn, until no old optimal action
    is optimal.

    Args:
      key: Randomness.
      system: The system before, with nodes in topological order.
      columns: How many columns are drawn, with replacement.

    Returns:
      The system after.
    """
    nodes = system.noise_mean.shape[0]
    actions = causal.all_actions(nodes)
    optimal = is_optimal(system.rewards(actions))
    bits = actions[jnp.argmax(optimal)]
    agreed = jnp.all((actions == bits) | ~optimal[:, None], axis=0)
    # Without any column on which they agree, all but the first (which is empty) may change.
    agreed = jnp.where(jnp.any(agreed), agreed, jnp.arange(nodes) > 0)

    def redraw(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        key, column_key, weight_key = jax.random.split(state[0], 3)
        chosen = jax.random.categorical(
            column_key, jnp.where(agreed, 0.0, -jnp.inf), shape=(columns,)
        )
        drawn = draw_columns(weight_key, (nodes, nodes))
        weights = system.weights.at[bits[chosen], :, chosen].set(drawn[:, chosen].T)
        return key, weights, state[2] + 1

    def idle(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        new = is_optimal(system._replace(weights=state[1]).rewards(actions))
        return jnp.any(new & optimal) & (state[2] < _MOST_DRAWS)

    start = redraw((key, system.weights, jnp.int32(0)))
    return system._replace(weights=jax.lax.while_loop(idle, redraw, start)[1])


def is_optimal(rewards: jax.Array) -> jax.Array:
    """Which of some actions are optimal.

    Args:
      rewards: Expected rewards (..., A).

    Returns:
      Booleans (..., A).
    """
    return jnp.max(rewards, axis=-1, keepdims=True) - rewards < OPTIMAL


def phases(system: System, key: jax.Array, *, changes: int, columns: int) -> System:
    """A system and what becomes of it, one after the other.

    Args:
      system: The first phase.
      key: Randomness.
      changes: How many changes.
      columns: Columns drawn in each change.

    Returns:
      A system with the phases (changes + 1) in front of each array.
    """
    found = [system]
    for place in range(changes):
        found.append(change(jax.random.fold_in(key, place), found[-1], columns))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def load(folder: str) -> System:
    """One fixed system from files.

    Args:
      folder: Holds B.npy and B_int.npy (N, N), nu.npy (N,) and sigma.npy (N, N), the noise's
        covariance, which is diagonal.

    Returns:
      The system.

    Raises:
      UserError: A file is missing or is not what it should be, or an action makes a cycle.
    """
    arrays = {name: _read(Path(folder).expanduser() / name, rank) for name, rank in _FILES.items()}
    nodes = len(arrays["nu.npy"])
    for name, rank in _FILES.items():
        if arrays[name].shape != (nodes,) * rank:
            raise UserError(f"{folder}/{name}: shape {arrays[name].shape} where nu has {nodes}")
    if nodes < 2:
        raise UserError(f"{folder}/nu.npy: a system has at least 2 nodes")
    covariance = arrays["sigma.npy"]
    variance = np.diagonal(covariance)
    if np.any(variance <= 0) or np.any(covariance != np.diag(variance)):
        raise UserError(f"{folder}/sigma.npy: must be diagonal with positive entries")
    weights = np.stack([arrays["B.npy"], arrays["B_int.npy"]])
    if not nx.is_directed_acyclic_graph(nx.DiGraph(np.any(weights != 0, axis=0))):
        raise UserError(f"{folder}: the edges of B.npy and B_int.npy together have a cycle")
    return System(jnp.asarray(weights), jnp.asarray(arrays["nu.npy"]), jnp.sqrt(variance))


def _read(path: Path, rank: int) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != rank or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: must be an array of numbers with {rank} axes")
    if not np.all(np.isfinite(array)):
        raise UserError(f"{path}: holds numbers that are not finite")
    return array.astype(np.float64)
