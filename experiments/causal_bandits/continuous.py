"""GOLEM-MAB and its NOTEARS variant: collect, learn both graphs by gradient descent, be greedy."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asym import causal
from experiments.causal_bandits.bandit import Agent, Known, Service

# Published values: step size of Adam, weights cut, and the penalties of GOLEM and of NOTEARS.
LEARNING_RATE, CUT = 1e-3, 0.3
GOLEM_SPARSITY, GOLEM_ACYCLIC = 2e-2, 5.0
NOTEARS_SPARSITY = 0.1
# NOTEARS: rounds of the augmented Lagrangian, and its penalty's growth where h falls too slowly.
_ROUNDS, _GROWTH, _ENOUGH = 10, 10.0, 0.25
# The test for a change of the whole graph.
WINDOW, THRESHOLD = 20, 20.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which learner.

    Attributes:
      nodes: N.
      objective: "golem" or "notears".
      samples: Samples without intervention, and as many with all nodes intervened on.
      steps: Steps of Adam a graph.
    """

    nodes: int
    objective: str
    samples: int
    steps: int


class Moments(NamedTuple):
    """What the learners need of some samples; pairs by value of all bits.

    Attributes:
      samples: How many (2,).
      total: Sums of all nodes (2, N).
      gram: Products of all nodes (2, N, N).
    """

    samples: jax.Array
    total: jax.Array
    gram: jax.Array


class Memory(NamedTuple):
    """What the agent remembers.

    Attributes:
      moments: Of the samples that were collected.
      learn: Whether graphs are to be learnt.
      weights: Learnt weights (2, N, N).
      arm: Bits that are played (N,).
      recent: Values of all nodes in the last plays of that action, in a ring (N, WINDOW).
      plays: Number of these plays.
      exploring: Whether this step collects.
      flagged: Pairs declared changed at this step: all or none (2, N).
      noise_mean: nu (N,).
      noise_scale: Standard deviations (N,).
      look: Whether to look for changes.
    """

    moments: Moments
    learn: jax.Array
    weights: jax.Array
    arm: jax.Array
    recent: jax.Array
    plays: jax.Array
    exploring: jax.Array
    flagged: jax.Array
    noise_mean: jax.Array
    noise_scale: jax.Array
    look: jax.Array


@functools.cache
def agent(rule: Rule) -> Agent:
    """The learner as pure functions.

    Args:
      rule: Which; the agent's only option is whether to look for changes.

    Returns:
      The agent.
    """
    nodes, actions = rule.nodes, causal.all_actions(rule.nodes)

    def start(known: Known, look: jax.Array) -> Memory:
        return Memory(
            moments=_empty(nodes),
            learn=jnp.array(True),
            weights=jnp.zeros((2, nodes, nodes)),
            arm=jnp.zeros(nodes, jnp.int32),
            recent=jnp.zeros((nodes, WINDOW)),
            plays=jnp.int32(0),
            exploring=jnp.array(True),
            flagged=jnp.zeros((2, nodes), bool),
            noise_mean=known.noise_mean,
            noise_scale=known.noise_scale,
            look=look,
        )

    def look_for_change(memory: Memory, time: jax.Array) -> Memory:
        stat = causal.graph_change_stat(
            memory.recent,
            weights=causal.post_intervention(
                observational=memory.weights[0],
                interventional=memory.weights[1],
                action=memory.arm,
            ),
            noise_mean=memory.noise_mean,
            noise_covariance=jnp.diag(memory.noise_scale**2),
        )
        changed = (memory.plays >= WINDOW) & ~memory.learn & memory.look & (stat > THRESHOLD)
        return memory._replace(
            flagged=jnp.broadcast_to(changed, memory.flagged.shape),
            learn=memory.learn | changed,
            moments=jax.tree.map(
                lambda empty, old: jnp.where(changed, empty, old), _empty(nodes), memory.moments
            ),
        )

    def collected(memory: Memory) -> jax.Array:
        return jnp.min(memory.moments.samples) >= rule.samples

    def work(memory: Memory, time: jax.Array) -> dict[str, jax.Array]:
        weights = learn(memory.moments, memory.noise_mean, rule)
        rewards = causal.expected_reward(
            observational=weights[0],
            interventional=weights[1],
            noise_mean=memory.noise_mean,
            actions=actions,
        )
        return {
            "weights": weights,
            "arm": actions[jnp.argmax(rewards)],
            "learn": jnp.array(False),
            "plays": jnp.int32(0),
        }

    def choose(memory: Memory, time: jax.Array, key: jax.Array) -> tuple[Memory, jax.Array]:
        exploring = ~collected(memory)
        bit = memory.moments.samples[0] >= rule.samples
        action = jnp.where(exploring, bit.astype(jnp.int32), memory.arm)
        return memory._replace(exploring=exploring), action

    def observe(memory: Memory, time: jax.Array, action: jax.Array, seen: jax.Array) -> Memory:
        value, used = action[0], memory.exploring
        added = Moments(
            memory.moments.samples.at[value].add(1),
            memory.moments.total.at[value].add(seen),
            memory.moments.gram.at[value].add(jnp.outer(seen, seen)),
        )
        moments = jax.tree.map(lambda new, old: jnp.where(used, new, old), added, memory.moments)
        recent = memory.recent.at[:, memory.plays % WINDOW].set(seen)
        return memory._replace(
            moments=moments,
            recent=jnp.where(used, memory.recent, recent),
            plays=memory.plays + ~used,
        )

    def wants(memory: Memory, time: jax.Array) -> jax.Array:
        return collected(memory) & memory.learn

    return Agent(
        start=start,
        choose=choose,
        observe=observe,
        prepare=look_for_change,
        # The steps of Adam are small: all instances fit side by side.
        services=(Service(wants, work, lanes=2**30),),
        trace=lambda memory: {"flagged": memory.flagged, "exploring": memory.exploring},
    )


def moments(seen: jax.Array) -> Moments:
    """What the learners need of samples (N, S) of one value."""
    return Moments(jnp.int32(seen.shape[1]), seen.sum(axis=1), seen @ seen.T)


def learn(data: Moments, noise_mean: jax.Array, rule: Rule) -> jax.Array:
    """Both graphs, with weights by least squares.

    Args:
      data: Samples of both values.
      noise_mean: nu (N,).
      rule: Which learner.

    Returns:
      Weights (2, N, N), 0 where there is no edge.
    """

    def one(data: Moments) -> jax.Array:
        count = jnp.maximum(data.samples, 1)
        centred = data.gram - jnp.outer(data.total, data.total) / count
        found = _descend(centred, count, rule)
        graph = causal.threshold_to_dag(found, threshold=CUT) != 0
        return _refit(data, graph, noise_mean)

    return jax.vmap(one)(data)


def _descend(gram: jax.Array, count: jax.Array, rule: Rule) -> jax.Array:
    """Minimises the objective from 0 by Adam."""
    optimizer = optax.adam(LEARNING_RATE)
    off_diagonal = 1.0 - jnp.eye(rule.nodes)

    def descend(weights: jax.Array, steps: int, multiplier: jax.Array, penalty: jax.Array):
        def objective(weights: jax.Array) -> jax.Array:
            if rule.objective == "golem":
                return causal.golem_objective(
                    weights, gram=gram, sparsity=GOLEM_SPARSITY, acyclic=GOLEM_ACYCLIC
                )
            return causal.notears_objective(
                weights,
                gram=gram,
                samples=count,
                sparsity=NOTEARS_SPARSITY,
                multiplier=multiplier,
                penalty=penalty,
            )

        def step(state: tuple[jax.Array, optax.OptState], _: None):
            weights, moments = state
            gradient = jax.grad(objective)(weights) * off_diagonal
            change, moments = optimizer.update(gradient, moments)
            return (weights + change, moments), None

        return jax.lax.scan(step, (weights, optimizer.init(weights)), length=steps)[0][0]

    weights, multiplier, penalty = jnp.zeros_like(gram), jnp.array(0.0), jnp.array(1.0)
    if rule.objective == "golem":
        return descend(weights, rule.steps, multiplier, penalty)

    def lagrangian(state: Any, _: None) -> tuple[Any, None]:
        weights, multiplier, penalty, before = state
        weights = descend(weights, -(-rule.steps // _ROUNDS), multiplier, penalty)
        cycles = causal.acyclicity(weights)
        grown = jnp.where(cycles > _ENOUGH * before, _GROWTH * penalty, penalty)
        return (weights, multiplier + penalty * cycles, grown, cycles), None

    state = (weights, multiplier, penalty, jnp.array(jnp.inf))
    return jax.lax.scan(lagrangian, state, length=_ROUNDS)[0][0]


def _refit(data: Moments, graph: jax.Array, noise_mean: jax.Array) -> jax.Array:
    """Least squares on the parents, as CSL-UCB estimates its weights."""

    def column(parents: jax.Array, moment: jax.Array) -> jax.Array:
        gram = jnp.where(parents[:, None] & parents, data.gram, 0)
        found = jnp.linalg.pinv(gram, hermitian=True) @ jnp.where(parents, moment, 0)
        return jnp.where(parents, found, 0)

    products = data.gram - jnp.outer(data.total, noise_mean)
    return jax.vmap(column, (1, 1), 1)(graph, products)


def _empty(nodes: int) -> Moments:
    return Moments(jnp.zeros(2, jnp.int32), jnp.zeros((2, nodes)), jnp.zeros((2, nodes, nodes)))
