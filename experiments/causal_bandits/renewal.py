"""How many new samples the graphs take after a change, for a learner that must notice it."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import causal
from experiments.causal_bandits import bandit, csl, identification, systems
from experiments.common import terminal


class Renewal(NamedTuple):
    """What CSL-UCB knows of the changed systems.

    Attributes:
      errors: Errors of the graphs from the samples that it trusts.
      declared: Whether all changed columns have been declared changed (B, sizes).
      told: Errors of the graphs where it is told at once which columns changed.
    """

    errors: identification.Errors
    declared: np.ndarray
    told: identification.Errors


@functools.cache
def wanderer(shape: csl.Shape) -> bandit.Agent:
    """CSL-UCB that learns and looks for changes as ever, but plays at random throughout.

    Args:
      shape: What the program depends on; the agent's options are those of CSL-UCB.

    Returns:
      The agent; its trace is the first step whose samples count, by value and column.
    """

    def choose(memory: csl.Memory, time: jax.Array, key: jax.Array) -> tuple[csl.Memory, jax.Array]:
        return memory, jax.random.randint(key, (shape.nodes,), 0, 2, jnp.int32)

    return csl.agent(shape)._replace(choose=choose, trace=lambda memory: {"start": memory.start})


def by_columns(
    sizes: Sequence[int],
    phases: systems.System,
    keys: jax.Array,
    *,
    change: int,
    n_max: int,
    options: csl.Options,
    lanes: int,
) -> Renewal:
    """CSL's graphs from random actions before and after the first change.

    CSL-UCB's own test declares columns changed, and from then on their old samples count no more.
    All others do, even those of changed columns that were not declared.

    Args:
      sizes: Numbers of new samples, rising.
      phases: Systems (B, P, ...), P >= 2.
      keys: One key an instance (B,).
      change: Samples before the change.
      n_max: The first so many samples of a column are used, as in the bandit.
      options: CSL-UCB's variant.
      lanes: Instances side by side.

    Returns:
      Errors and declarations.
    """
    before, after = (jax.tree.map(lambda leaf, at=at: leaf[:, at], phases) for at in (0, 1))
    horizon = bandit.BIN * (1 + (change + sizes[-1]) // bandit.BIN)
    lanes = min(lanes, len(keys))
    played = bandit.play(
        wanderer(csl.Shape(before.noise_mean.shape[1], horizon, n_max, lanes)),
        jax.tree.map(lambda leaf: leaf[:, :2], phases),
        keys,
        times=(change,),
        horizon=horizon,
        description="samples before and after a change",
        options=options,
    )
    redrawn = np.any(np.asarray(before.weights != after.weights), axis=2)
    told = np.where(redrawn, change, 0)
    errors, declared = [], []
    with terminal.progress("graphs", len(sizes), unit="size", delay=2.0) as bar:
        for size in sizes:
            # What was declared before this step stems from the samples before it.
            start = played.trace["start"][:, change + size]
            declared.append(np.all((start >= change) | ~redrawn, axis=(1, 2)))
            starts = np.stack([start, told], axis=1)
            known = jnp.int32(change + size)
            errors.append(_learn(lanes, n_max, known, after, played.memory, starts))
            jax.block_until_ready(errors)
            bar.update(1)
    both = [np.stack(values, axis=2) for values in zip(*errors, strict=True)]
    of = [identification.Errors(*(value[:, at] for value in both)) for at in (0, 1)]
    return Renewal(of[0], np.stack(declared, axis=1), of[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _learn(
    lanes: int,
    n_max: int,
    size: jax.Array,
    system: systems.System,
    memory: csl.Memory,
    starts: jax.Array,
) -> tuple[jax.Array, ...]:
    """Errors (B, S) from the first samples, for several starts of the columns (B, S, 2, N)."""

    def instance(
        given: tuple[systems.System, csl.Memory, jax.Array],
    ) -> tuple[jax.Array, ...]:
        system, memory, starts = given
        # Later plays count as not yet played.
        played = jnp.where(jnp.arange(memory.actions.shape[1]) < size, memory.actions, -1)

        def one(start: jax.Array) -> tuple[jax.Array, ...]:
            samples = causal.select_samples(
                observations=memory.observations, actions=played, start=start, capacity=n_max
            )
            return identification.learn_columns(system, samples, memory.options.log_weight)

        return jax.lax.map(one, starts)

    return jax.lax.map(instance, (system, memory, starts), batch_size=lanes)
