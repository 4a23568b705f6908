"""Policies without graph learning: each action by itself, and known parents."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asym import causal
from experiments.causal_bandits.bandit import Agent, Known

# In the non-stationary setting vanilla UCB looks at so many last plays of each action.
RECENT = 10


class ArmMemory(NamedTuple):
    """Rewards by action.

    Attributes:
      plays: How often (A,).
      total: Sum of rewards (A,).
      recent: The last rewards, in a ring (A, RECENT).
    """

    plays: jax.Array
    total: jax.Array
    recent: jax.Array


@functools.cache
def vanilla_ucb(nodes: int, *, windowed: bool) -> Agent:
    """Every action once, then the largest mean plus ``sqrt(log t / plays)``.

    Args:
      nodes: N; there are 2^N actions.
      windowed: Whether only the last plays of each action count.

    Returns:
      The agent.
    """
    actions = causal.all_actions(nodes)

    def start(known: Known, options: None) -> ArmMemory:
        arms = len(actions)
        return ArmMemory(jnp.zeros(arms, jnp.int32), jnp.zeros(arms), jnp.zeros((arms, RECENT)))

    def choose(memory: ArmMemory, time: jax.Array, key: jax.Array) -> tuple[ArmMemory, jax.Array]:
        total, count = memory.total, memory.plays
        if windowed:
            total, count = memory.recent.sum(axis=1), jnp.minimum(count, RECENT)
        plays = jnp.maximum(count, 1)
        bonus = jnp.sqrt(jnp.log(jnp.maximum(time, 1)) / plays)
        return memory, actions[jnp.argmax(jnp.where(count == 0, jnp.inf, total / plays + bonus))]

    def observe(
        memory: ArmMemory, time: jax.Array, action: jax.Array, seen: jax.Array
    ) -> ArmMemory:
        arm = action @ 2 ** jnp.arange(nodes)[::-1]
        place = memory.plays[arm] % RECENT
        return ArmMemory(
            memory.plays.at[arm].add(1),
            memory.total.at[arm].add(seen[-1]),
            memory.recent.at[arm, place].set(seen[-1]),
        )

    return Agent(start, choose, observe)


class PosteriorMemory(NamedTuple):
    """Bayesian regressions of all columns.

    Attributes:
      precision: I plus the products of all nodes (2, N, N, N) by value and column.
      moment: Products with the column's node less its noise's mean (2, N, N).
      parents: True parents by phase (P, 2, N, N).
      times: First steps of later phases.
      noise_mean: nu (N,).
    """

    precision: jax.Array
    moment: jax.Array
    parents: jax.Array
    times: jax.Array
    noise_mean: jax.Array


@functools.cache
def linsem_ts(nodes: int) -> Agent:
    """Thompson sampling with known parents, prior N(0, I) and noise of variance 1.

    Args:
      nodes: N.

    Returns:
      The agent; where the graph changes it is told the new parents, and not that weights changed.
    """
    actions = causal.all_actions(nodes)

    def start(known: Known, options: None) -> PosteriorMemory:
        return PosteriorMemory(
            jnp.broadcast_to(jnp.eye(nodes), (2, nodes, nodes, nodes)),
            jnp.zeros((2, nodes, nodes)),
            known.weights != 0,
            known.times,
            known.noise_mean,
        )

    def draw(
        precision: jax.Array, moment: jax.Array, parents: jax.Array, key: jax.Array
    ) -> jax.Array:
        among = parents[:, None] & parents
        factor = jnp.linalg.cholesky(jnp.where(among, precision, jnp.eye(nodes)))
        solve = jax.scipy.linalg.solve_triangular
        half = solve(factor, jnp.where(parents, moment, 0), lower=True)
        normal = jax.random.normal(key, (nodes,))
        return jnp.where(parents, solve(factor, half + normal, lower=True, trans=1), 0)

    def choose(
        memory: PosteriorMemory, time: jax.Array, key: jax.Array
    ) -> tuple[PosteriorMemory, jax.Array]:
        parents = memory.parents[jnp.sum(time >= memory.times)]
        keys = jax.random.split(key, (2, nodes))
        columns = jax.vmap(jax.vmap(draw))(
            memory.precision, memory.moment, jnp.swapaxes(parents, 1, 2), keys
        )
        weights = jnp.swapaxes(columns, 1, 2)
        # The true edges make no cycle under any action, so the sum over paths is exact.
        rewards = causal.path_sum_reward(
            observational=weights[0],
            interventional=weights[1],
            noise_mean=memory.noise_mean,
            actions=actions,
        )
        return memory, actions[jnp.argmax(rewards)]

    def observe(
        memory: PosteriorMemory, time: jax.Array, action: jax.Array, seen: jax.Array
    ) -> PosteriorMemory:
        columns = jnp.arange(nodes)
        return memory._replace(
            precision=memory.precision.at[action, columns].add(jnp.outer(seen, seen)),
            moment=memory.moment.at[action, columns].add(
                seen * (seen - memory.noise_mean)[:, None]
            ),
        )

    return Agent(start, choose, observe)


class OracleMemory(NamedTuple):
    """The best action of each phase (P, N), and the first steps of later phases."""

    best: jax.Array
    times: jax.Array


@functools.cache
def oracle(nodes: int) -> Agent:
    """Plays the best action; its regret is noise.

    Args:
      nodes: N.

    Returns:
      The agent.
    """
    actions = causal.all_actions(nodes)

    def start(known: Known, options: None) -> OracleMemory:
        rewards = jax.vmap(
            lambda weights: causal.path_sum_reward(
                observational=weights[0],
                interventional=weights[1],
                noise_mean=known.noise_mean,
                actions=actions,
            )
        )(known.weights)
        return OracleMemory(actions[jnp.argmax(rewards, axis=-1)], known.times)

    def choose(
        memory: OracleMemory, time: jax.Array, key: jax.Array
    ) -> tuple[OracleMemory, jax.Array]:
        return memory, memory.best[jnp.sum(time >= memory.times)]

    return Agent(start, choose, lambda memory, time, action, seen: memory)
