"""CSL-UCB: learns the columns' graphs with asymmetric errors, then acts by upper confidence."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asym import causal
from experiments.causal_bandits.bandit import Agent, Known, Service

# The paper's constants: samples a column before it is learnt, steps between learning graphs and
# between estimating weights, first step with tests for change, their window and threshold, and the
# width's probability of failing.
SAMPLES, GRAPH_EVERY, WEIGHTS_EVERY = 20, 50, 20
STATIC, WINDOW, THRESHOLD = 200, 20, 2.0
DELTA = 0.05
# Share of the largest mean that the largest width is worth at the start.
SHARE = 0.5
# From so many operations on, jaxlib 0.10 shares a batch of factorisations out among the threads
# that run the program, and one of them waits. Where all wait so, none is left to do the work.
_SHARED_OUT = 200_000


class Shape(NamedTuple):
    """What the program depends on.

    Attributes:
      nodes: N.
      horizon: T.
      n_max: The first so many samples of a column are used.
      lanes: Instances whose graphs are learnt side by side.
    """

    nodes: int
    horizon: int
    n_max: int
    lanes: int


class Options(NamedTuple):
    """What distinguishes the variants; they share one program.

    Attributes:
      log_weight: w of the removal score; 0 is the symmetric rule.
      optimism: Factor of the width: 1, or 0 for the greedy rule.
      theorem: Whether the width is the theorem's.
      look: Whether to look for changes.
      restart: Whether everything is learnt anew after a change, not the changed columns alone.
    """

    log_weight: jax.Array
    optimism: jax.Array
    theorem: jax.Array
    look: jax.Array
    restart: jax.Array


class Memory(NamedTuple):
    """What CSL-UCB remembers; pairs are by value of the bit and column.

    Attributes:
      observations: Values of all nodes (N, T).
      actions: Bits (N, T), -1 where not yet played.
      recent: The last WINDOW values of all nodes of each pair, in a ring (2, N, WINDOW, N).
      plays: Plays of each pair from the beginning (2, N).
      since: Plays since the pair was last declared changed (2, N).
      learn: Pairs to be learnt (2, N).
      start: First step whose samples count (2, N).
      used: Samples from which the graphs were learnt (2, N), and their starts.
      used_start: See `used`.
      graphs: Learnt graphs (2, N, N).
      weights: Estimated weights (2, N, N).
      coefficient: Of the width at the beginning; NaN before it is known.
      arm: Bits that are played (N,).
      flagged: Pairs that were declared changed at this step (2, N).
      exploring: Whether this step's action is random.
      noise_mean: nu (N,).
      noise_scale: Standard deviations (N,).
      options: The variant.
    """

    observations: jax.Array
    actions: jax.Array
    recent: jax.Array
    plays: jax.Array
    since: jax.Array
    learn: jax.Array
    start: jax.Array
    used: jax.Array
    used_start: jax.Array
    graphs: jax.Array
    weights: jax.Array
    coefficient: jax.Array
    arm: jax.Array
    flagged: jax.Array
    exploring: jax.Array
    noise_mean: jax.Array
    noise_scale: jax.Array
    options: Options


@functools.cache
def agent(shape: Shape) -> Agent:
    """CSL-UCB as pure functions.

    Args:
      shape: What the program depends on; the agent's options are `Options`.

    Returns:
      The agent.
    """
    nodes, actions = shape.nodes, causal.all_actions(shape.nodes)
    columns = jnp.arange(nodes)

    def start(known: Known, options: Options) -> Memory:
        pairs = (2, nodes)
        return Memory(
            observations=jnp.zeros((nodes, shape.horizon)),
            actions=jnp.full((nodes, shape.horizon), -1, jnp.int32),
            recent=jnp.zeros((*pairs, WINDOW, nodes)),
            plays=jnp.zeros(pairs, jnp.int32),
            since=jnp.zeros(pairs, jnp.int32),
            learn=jnp.ones(pairs, bool),
            start=jnp.zeros(pairs, jnp.int32),
            used=jnp.full(pairs, -1, jnp.int32),
            used_start=jnp.zeros(pairs, jnp.int32),
            graphs=jnp.zeros((*pairs, nodes), bool),
            weights=jnp.zeros((*pairs, nodes)),
            coefficient=jnp.array(jnp.nan),
            arm=jnp.zeros(nodes, jnp.int32),
            flagged=jnp.zeros(pairs, bool),
            exploring=jnp.array(True),
            noise_mean=known.noise_mean,
            noise_scale=known.noise_scale,
            options=options,
        )

    def look_for_change(memory: Memory, time: jax.Array) -> Memory:
        residuals = _residuals(memory)
        scale = jnp.broadcast_to(memory.noise_scale, memory.plays.shape)
        changed = causal.column_change_stat(residuals, noise_scale=scale) > THRESHOLD
        flagged = changed & ~memory.learn & (time > STATIC) & memory.options.look
        flagged = flagged | (memory.options.restart & jnp.any(flagged))
        return memory._replace(
            flagged=flagged,
            start=jnp.where(flagged, time - 1, memory.start),
            since=jnp.where(flagged, 0, memory.since),
            learn=memory.learn | flagged,
        )

    def explored(memory: Memory) -> jax.Array:
        return jnp.min(memory.since) >= SAMPLES

    def wants_graphs(memory: Memory, time: jax.Array) -> jax.Array:
        due = jnp.any(memory.learn) | (time % GRAPH_EVERY == 0)
        # From the very same samples the very same graphs would be learnt.
        fresh = (_used(memory, shape.n_max) != memory.used) | (memory.start != memory.used_start)
        return explored(memory) & due & jnp.any(fresh)

    def learn_graphs(memory: Memory, time: jax.Array) -> dict[str, jax.Array]:
        samples = _samples(memory, shape)
        graphs = jax.vmap(
            lambda values, mask: causal.prune_to_dag(
                values, mask, noise_mean=memory.noise_mean, log_weight=memory.options.log_weight
            )
        )(*samples)
        return {
            "graphs": graphs,
            "used": _used(memory, shape.n_max),
            "used_start": memory.start,
        }

    def wants_weights(memory: Memory, time: jax.Array) -> jax.Array:
        return explored(memory) & (jnp.any(memory.learn) | (time % WEIGHTS_EVERY == 0))

    def estimate(memory: Memory, time: jax.Array) -> dict[str, jax.Array]:
        samples = _samples(memory, shape)
        weights = jax.vmap(
            lambda values, mask, graph: causal.estimate_weights(
                values, mask, adjacency=graph, noise_mean=memory.noise_mean
            )
        )(*samples, memory.graphs)
        means, both = means_and_widths(
            weights, samples, memory.noise_mean, memory.noise_scale, actions, beside=shape.lanes
        )
        widths = jnp.where(memory.options.theorem, both[1], both[0])
        first = jnp.isnan(memory.coefficient)
        initial = SHARE * jnp.max(means) / jnp.max(widths)
        coefficient = jnp.where(first, initial, memory.coefficient)
        factor = causal.cosine_anneal(time=time, start=jnp.max(memory.start), horizon=shape.horizon)
        scale = memory.options.optimism * coefficient * jnp.where(first, 1, factor)
        return {
            "weights": weights,
            "coefficient": coefficient,
            "arm": actions[jnp.argmax(means + scale * widths)],
            "learn": jnp.zeros_like(memory.learn),
        }

    def choose(memory: Memory, time: jax.Array, key: jax.Array) -> tuple[Memory, jax.Array]:
        exploring = ~explored(memory)
        random = actions[jax.random.randint(key, (), 0, len(actions))]
        return memory._replace(exploring=exploring), jnp.where(exploring, random, memory.arm)

    def observe(memory: Memory, time: jax.Array, action: jax.Array, seen: jax.Array) -> Memory:
        place = memory.plays[action, columns] % WINDOW
        return memory._replace(
            observations=memory.observations.at[:, time].set(seen),
            actions=memory.actions.at[:, time].set(action),
            recent=memory.recent.at[action, columns, place].set(seen),
            plays=memory.plays.at[action, columns].add(1),
            since=memory.since.at[action, columns].add(1),
        )

    return Agent(
        start=start,
        choose=choose,
        observe=observe,
        prepare=look_for_change,
        services=(
            Service(wants_graphs, learn_graphs, shape.lanes),
            Service(wants_weights, estimate, shape.lanes),
        ),
        trace=lambda memory: {"flagged": memory.flagged, "exploring": memory.exploring},
    )


def means_and_widths(
    weights: jax.Array,
    samples: causal.ColumnSamples,
    noise_mean: jax.Array,
    noise_scale: jax.Array,
    actions: jax.Array,
    *,
    beside: int,
) -> tuple[jax.Array, jax.Array]:
    """Estimated reward of each action, and how far it may be from the true one.

    Args:
      weights: Estimated B and B' (2, N, N).
      samples: The samples from which they were estimated.
      noise_mean: nu (N,).
      noise_scale: Standard deviations (N,).
      actions: Bits (A, N).
      beside: How many of these calls a vmap puts side by side.

    Returns:
      Means (A,), and widths by the authors' code and by the theorem (2, A).
    """

    def variance(covariates: jax.Array, parents: jax.Array, mask: jax.Array, scale: jax.Array):
        return causal.column_error_variance(
            covariates, parent_mask=parents, sample_mask=mask, noise_scale=scale
        )

    of_column = jax.vmap(variance, (0, 1, 0, 0))
    variances = jax.vmap(of_column, (0, 0, 0, None))(
        samples.values, weights != 0, samples.mask, noise_scale
    )

    def one(action: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = causal.post_intervention(
            observational=weights[0], interventional=weights[1], action=action
        )
        width = functools.partial(
            causal.ucb_width,
            chosen,
            noise_mean=noise_mean,
            error_variance=variances[action, jnp.arange(len(noise_mean))],
            delta=DELTA,
        )
        both = jnp.stack([width(form="code"), width(form="theorem")])
        return causal.mean_response(chosen, noise_mean)[-1], both

    together = (_SHARED_OUT - 1) // (beside * len(noise_mean) ** 3)
    means, widths = jax.lax.map(one, actions, batch_size=max(1, min(together, len(actions))))
    return means, widths.T


def _samples(memory: Memory, shape: Shape) -> causal.ColumnSamples:
    return causal.select_samples(
        observations=memory.observations,
        actions=memory.actions,
        start=memory.start,
        capacity=shape.n_max,
    )


def _used(memory: Memory, n_max: int) -> jax.Array:
    return jnp.minimum(memory.since, n_max)


def _residuals(memory: Memory) -> jax.Array:
    """Noise of the last samples by the estimated weights (2, N, WINDOW)."""
    predicted = jnp.einsum("vnwp,vpn->vnw", memory.recent, memory.weights)
    own = jnp.einsum("vnwn->vnw", memory.recent)
    return own - predicted - memory.noise_mean[:, None]
