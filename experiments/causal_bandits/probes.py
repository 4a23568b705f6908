"""Checks of single pieces at the card's own sizes, whatever the settings of the run."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import causal
from experiments.causal_bandits import bandit, csl, identification, rivals, systems
from experiments.common import seeds

NODES = 5
# Samples from which the checked weights are estimated, and systems they are of.
SIZES = (100, 200)
WIDTH_SYSTEMS, CHANGE_SYSTEMS = 20, 100
# Systems that are estimated side by side.
_TOGETHER = 20
# Every third of the 32 actions: 11 of them.
_STRIDE = 3
# Samples of a column after which a change must have been noticed.
RELEVANT = 40


class Widths(NamedTuple):
    """Widths and errors of estimated rewards, known parents.

    Attributes:
      error: |estimate - truth| (systems, sizes, actions).
      code: Width by the authors' code, of the same shape.
      theorem: Width by the theorem.
    """

    error: np.ndarray
    code: np.ndarray
    theorem: np.ndarray


@jax.jit
def _estimate(drawn: systems.System, keys: jax.Array) -> tuple[jax.Array, ...]:
    return jax.lax.map(lambda given: _estimate_one(*given), (drawn, keys), batch_size=_TOGETHER)


def _estimate_one(system: systems.System, key: jax.Array) -> tuple[jax.Array, ...]:
    seen, played = identification.play_at_random(key, system, max(SIZES))
    actions = causal.all_actions(NODES)[::_STRIDE]
    truth = system.rewards(actions)

    def of_size(size: jax.Array) -> tuple[jax.Array, ...]:
        samples = causal.select_samples(
            observations=seen,
            # Later plays count as not yet played.
            actions=jnp.where(jnp.arange(max(SIZES)) < size, played, -1),
            start=jnp.zeros((2, NODES), jnp.int32),
            capacity=max(SIZES),
        )
        weights = jax.vmap(
            lambda values, mask, graph: causal.estimate_weights(
                values, mask, adjacency=graph, noise_mean=system.noise_mean
            )
        )(*samples, system.weights != 0)
        means, widths = csl.means_and_widths(
            weights,
            samples,
            system.noise_mean,
            system.noise_scale,
            actions,
            beside=_TOGETHER * len(SIZES),
        )
        return jnp.abs(means - truth), *widths, weights

    return jax.vmap(of_size)(jnp.array(SIZES))


@functools.partial(jax.jit, static_argnums=0)
def _draw(number: int) -> tuple[systems.System, jax.Array]:
    """Systems of NODES nodes, and a further key for each."""
    keys = jax.vmap(jax.random.split)(seeds.keys(0, number))
    return jax.vmap(lambda key: systems.draw(key, NODES))(keys[:, 0]), keys[:, 1]


def widths() -> Widths:
    """Whether the width covers the error, and how it shrinks with samples.

    Returns:
      Errors and widths.
    """
    with jax.enable_x64(True):
        system, keys = _draw(WIDTH_SYSTEMS)
        error, code, theorem, _ = _estimate(system, keys)
        return Widths(*map(np.asarray, (error, code, theorem)))


class Changes(NamedTuple):
    """When columns are declared changed, in samples of the column; RELEVANT + 1 is never.

    Attributes:
      unchanged: First declaration of each pair that did not change (systems, 2, NODES).
      changed: First declaration of a pair that did (systems,).
    """

    unchanged: np.ndarray
    changed: np.ndarray


@jax.jit
@jax.vmap
def _first_declarations(
    system: systems.System, key: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    before_key, after_key, column_key, weight_key = jax.random.split(key, 4)
    value, place = jnp.divmod(jax.random.randint(column_key, (), 0, 2 * (NODES - 1)), NODES - 1)
    column = place + 1

    def redraw(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        key, chosen = jax.random.split(state[0])
        drawn = systems.draw_columns(chosen, (NODES, NODES))[:, column]
        return key, system.weights.at[value, :, column].set(drawn)

    def same(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.all(state[1] == system.weights)

    changed = jax.lax.while_loop(same, redraw, (weight_key, system.weights))[1]
    # Samples in which one pair is in force: enough of them among twice as many and some more.
    steps = 4 * RELEVANT

    def first(system: systems.System, key: jax.Array) -> jax.Array:
        seen, played = identification.play_at_random(key, system, steps)
        samples = causal.select_samples(
            observations=seen,
            actions=played,
            start=jnp.zeros((2, NODES), jnp.int32),
            capacity=RELEVANT,
        )
        own = jnp.einsum("vnns->vns", samples.values)
        predicted = jnp.einsum("vnps,vpn->vns", samples.values, weights)
        residuals = own - predicted - system.noise_mean[:, None]
        window = jnp.arange(csl.WINDOW) + jnp.arange(RELEVANT - csl.WINDOW + 1)[:, None]
        scale = jnp.broadcast_to(system.noise_scale[:, None], (2, NODES, len(window)))
        stat = causal.column_change_stat(residuals[..., window], noise_scale=scale)
        flagged = stat > csl.THRESHOLD
        after = jnp.argmax(flagged, axis=-1) + csl.WINDOW
        return jnp.where(jnp.any(flagged, axis=-1), after, RELEVANT + 1)

    unchanged = first(system, before_key)
    later = first(system._replace(weights=changed), after_key)
    return unchanged, later[value, column]


def changes() -> Changes:
    """How soon the test notices one redrawn column, and how often it errs without.

    Windows lie wholly after the change, as they do once WINDOW samples have come.

    Returns:
      First declarations.
    """
    with jax.enable_x64(True):
        system, keys = _draw(CHANGE_SYSTEMS)
        pairs = jax.vmap(jax.random.split)(keys)
        weights = _estimate(system, pairs[:, 0])[-1][:, -1]
        unchanged, changed = _first_declarations(system, pairs[:, 1], weights)
        return Changes(np.asarray(unchanged), np.asarray(changed))


def path_sums() -> float:
    """Largest difference of rewards by elimination and by the sum over paths, of all actions.

    Returns:
      The difference, relative to the largest reward where that exceeds 1.
    """

    @jax.jit
    @jax.vmap
    def difference(system: systems.System) -> jax.Array:
        actions = causal.all_actions(NODES)
        summed = system.rewards(actions)
        solved = causal.expected_reward(
            observational=system.weights[0],
            interventional=system.weights[1],
            noise_mean=system.noise_mean,
            actions=actions,
        )
        return jnp.max(jnp.abs(solved - summed)) / jnp.maximum(jnp.max(jnp.abs(solved)), 1)

    with jax.enable_x64(True):
        return float(np.max(difference(_draw(WIDTH_SYSTEMS)[0])))


def oracle_regret() -> np.ndarray:
    """Mean regret of the best action in the bandit loop, in standard errors from 0.

    Returns:
      One number an instance.
    """
    with jax.enable_x64(True):
        system, keys = _draw(WIDTH_SYSTEMS)
        phases = jax.tree.map(lambda leaf: leaf[:, None], system)
        played = bandit.play(
            rivals.oracle(NODES),
            phases,
            keys,
            times=(),
            horizon=10 * bandit.BIN,
            description="oracle",
        )
    return played.regret
