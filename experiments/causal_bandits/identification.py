"""How many samples the graphs take: errors of both kinds against samples of random actions."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import causal
from experiments.causal_bandits import bandit, continuous, systems
from experiments.common import terminal


class Errors(NamedTuple):
    """Errors by instance and number of samples, each (B, sizes), averaged over B and B'.

    Attributes:
      missing: Share of the true edges that are missing (false negatives).
      superfluous: Share of the absent ordered pairs that are kept (false positives).
      gap: Best expected reward minus that of the action that the estimates favour.
    """

    missing: np.ndarray
    superfluous: np.ndarray
    gap: np.ndarray


def samples_until(reached: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The first number of samples at which something is reached.

    Args:
      reached: Whether it is (B, sizes).
      sizes: Numbers of samples, rising.

    Returns:
      The number for each instance, the largest one where even that was not enough, and whether it
      was enough.
    """
    enough = np.asarray(np.any(reached, axis=1))
    first = np.where(enough, np.argmax(reached, axis=1), len(sizes) - 1)
    return np.asarray(sizes, dtype=float)[first], enough


def by_columns(
    sizes: Sequence[int],
    system: systems.System,
    keys: jax.Array,
    *,
    log_weight: float,
    lanes: int,
) -> Errors:
    """CSL's graphs from random actions; all samples of a column are used.

    Args:
      sizes: Numbers of samples.
      system: Systems (B, ...).
      keys: One key an instance (B,).
      log_weight: w of the removal score.
      lanes: Instances side by side.

    Returns:
      The errors.
    """
    found = []
    with terminal.progress("graphs", sum(sizes), unit="sample", delay=2.0) as bar:
        for size in sizes:
            lanes = min(lanes, len(keys))
            found.append(_columns(size, lanes, system, keys, jnp.array(log_weight)))
            jax.block_until_ready(found)
            bar.update(size)
    return Errors(*(np.stack(values, axis=1) for values in zip(*found, strict=True)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _columns(
    size: int, lanes: int, system: systems.System, keys: jax.Array, log_weight: jax.Array
) -> tuple[jax.Array, ...]:
    def instance(given: tuple[systems.System, jax.Array]) -> tuple[jax.Array, ...]:
        system, key = given
        nodes = system.noise_mean.shape[0]
        seen, actions = play_at_random(key, system, size)
        samples = causal.select_samples(
            observations=seen,
            actions=actions,
            start=jnp.zeros((2, nodes), jnp.int32),
            capacity=_at_most(size),
        )
        return learn_columns(system, samples, log_weight)

    return jax.lax.map(instance, (system, keys), batch_size=lanes)


def learn_columns(
    system: systems.System, samples: causal.ColumnSamples, log_weight: jax.Array
) -> tuple[jax.Array, ...]:
    """Learns both graphs as CSL does, and judges them.

    Args:
      system: The true system.
      samples: Of each column.
      log_weight: w of the removal score.

    Returns:
      The errors of one instance, as in `Errors`.
    """

    def learn(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        graph = causal.prune_to_dag(
            values, mask, noise_mean=system.noise_mean, log_weight=log_weight
        )
        weights = causal.estimate_weights(
            values, mask, adjacency=graph, noise_mean=system.noise_mean
        )
        return graph, weights

    return _judge(system, *jax.vmap(learn)(*samples))


def by_descent(
    sizes: Sequence[int], system: systems.System, keys: jax.Array, *, rule: continuous.Rule
) -> Errors:
    """The continuous learners' graphs: half of the samples without, half with all interventions.

    Args:
      sizes: Numbers of samples.
      system: Systems (B, ...).
      keys: One key an instance (B,).
      rule: Which learner.

    Returns:
      The errors.
    """

    @jax.jit
    def collect(system: systems.System, keys: jax.Array) -> list[continuous.Moments]:
        def one(system: systems.System, key: jax.Array, bit: jax.Array) -> jax.Array:
            action = jnp.full(rule.nodes, bit)
            respond = jax.vmap(lambda key: bandit.respond(key, system, action))
            return respond(_each(key, max(sizes) // 2)).T

        def both(system: systems.System, key: jax.Array) -> jax.Array:
            return jax.vmap(one, (None, 0, 0))(system, jax.random.split(key), jnp.arange(2))

        seen = jax.vmap(both)(system, keys)
        moments = jax.vmap(jax.vmap(continuous.moments))
        return [moments(seen[..., : size // 2]) for size in sizes]

    @jax.jit
    def errors(data: continuous.Moments, system: systems.System) -> tuple[jax.Array, ...]:
        def one(data: continuous.Moments, system: systems.System) -> tuple[jax.Array, ...]:
            weights = continuous.learn(data, system.noise_mean, rule)
            return _judge(system, weights != 0, weights)

        return jax.vmap(one)(data, system)

    found = []
    with terminal.progress("graphs", len(sizes), unit="size", delay=2.0) as bar:
        for data in collect(system, keys):
            found.append(jax.block_until_ready(errors(data, system)))
            bar.update(1)
    return Errors(*(np.stack(values, axis=1) for values in zip(*found, strict=True)))


def play_at_random(
    key: jax.Array, system: systems.System, size: int
) -> tuple[jax.Array, jax.Array]:
    """Values of all nodes under random actions.

    Args:
      key: Randomness.
      system: One system.
      size: How many.

    Returns:
      Values and bits (N, size).
    """
    nodes = system.noise_mean.shape[0]

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action_key, noise_key = jax.random.split(key)
        action = jax.random.randint(action_key, (nodes,), 0, 2)
        return bandit.respond(noise_key, system, action), action

    seen, actions = jax.vmap(one)(_each(key, size))
    return seen.T, actions.T


def _judge(system: systems.System, graphs: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    true = system.weights != 0
    absent = ~jnp.eye(true.shape[-1], dtype=bool) & ~true
    axes = (1, 2)
    missing = jnp.sum(true & ~graphs, axes) / jnp.maximum(jnp.sum(true, axes), 1)
    superfluous = jnp.sum(absent & graphs, axes) / jnp.sum(absent, axes)
    actions = causal.all_actions(true.shape[-1])
    rewards = system.rewards(actions)
    # The columns of two learnt graphs may make a cycle together.
    estimated = causal.expected_reward(
        observational=weights[0],
        interventional=weights[1],
        noise_mean=system.noise_mean,
        actions=actions,
    )
    favoured = jnp.argmax(estimated)
    return missing.mean(), superfluous.mean(), jnp.max(rewards) - rewards[favoured]


def _at_most(size: int) -> int:
    """Places for the samples of a column: half of all and six standard deviations."""
    return min(size, size // 2 + 3 * int(np.ceil(np.sqrt(size))))


def _each(key: jax.Array, size: int) -> jax.Array:
    """A key for each sample; the first ones are the same whatever the size."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(size))
