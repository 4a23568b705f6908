"""The loop in which agents play: all instances and steps in one program, which Python only paces.

An agent is a set of pure functions for one system; the loop maps them over the instances. What an
agent must do now and then, and what is dear (learning a graph), is a `Service`: at each step it is
done for the instances that want it, a few side by side. Mapping a condition would do it for all
instances at every step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import causal
from experiments.causal_bandits import systems
from experiments.common import terminal

# Steps in one dispatch to the device, and in one bin of the shares of optimal actions.
BIN = 100


class Known(NamedTuple):
    """What an agent may be told of its system; most look at the noise alone.

    Attributes:
      noise_mean: nu (N,).
      noise_scale: Standard deviations (N,).
      weights: True weights in each phase (P, 2, N, N).
      times: First steps of the phases after the first (P - 1,).
    """

    noise_mean: jax.Array
    noise_scale: jax.Array
    weights: jax.Array
    times: jax.Array


class Service(NamedTuple):
    """Work that an agent does when it must.

    Attributes:
      wants: Memory and step, to a boolean.
      work: Memory and step, to the fields of the memory that change.
      lanes: Instances that are served side by side.
    """

    wants: Callable[[Any, jax.Array], jax.Array]
    work: Callable[[Any, jax.Array], dict[str, jax.Array]]
    lanes: int


class Agent(NamedTuple):
    """A policy for one system.

    Attributes:
      start: What is known and the options, to the first memory (a NamedTuple).
      prepare: Memory and step, to memory: what precedes the services.
      services: In their order.
      choose: Memory, step and key, to memory and the action's bits (N,).
      observe: Memory, step, action and the values of all nodes, to memory.
      trace: Memory after choosing, to numbers that are kept for each step.
    """

    start: Callable[[Known, Any], Any]
    choose: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]
    observe: Callable[[Any, jax.Array, jax.Array, jax.Array], Any]
    prepare: Callable[[Any, jax.Array], Any] = lambda memory, time: memory
    services: Sequence[Service] = ()
    trace: Callable[[Any], dict[str, jax.Array]] = lambda memory: {}


class Play(NamedTuple):
    """What happened; instances come first.

    Attributes:
      regret: Best expected reward minus the reward that was seen (B, T).
      reward: Reward that was seen (B, T).
      optimal: Whether the action was optimal (B, T).
      trace: Arrays (B, T, ...) by name.
      memory: The agents' last memories.
    """

    regret: np.ndarray
    reward: np.ndarray
    optimal: np.ndarray
    trace: dict[str, np.ndarray]
    memory: Any


def play(
    agent: Agent,
    phases: systems.System,
    keys: jax.Array,
    *,
    times: Sequence[int],
    horizon: int,
    description: str,
    options: Any = None,
) -> Play:
    """Lets an agent play all instances.

    The noise of an instance depends on its key and the step, not on the agent.

    Args:
      agent: The agent.
      phases: Systems (B, P, ...).
      keys: One key an instance (B,).
      times: First steps of the phases after the first; phases that begin at the horizon or later
        are never played.
      horizon: Steps, a multiple of BIN.
      description: For the progress bar.
      options: Arrays that the agent's memory starts from; other options, the same program.

    Returns:
      What happened.
    """
    starts = jnp.asarray(np.asarray(times, dtype=np.int32))
    memory, world = _begin(agent, phases, keys, starts, options)
    parts = []
    with terminal.progress(description, horizon, delay=2.0) as bar:
        for begin in range(0, horizon, BIN):
            memory, part = _advance(agent, memory, world, jnp.int32(begin))
            parts.append(jax.tree.map(np.asarray, part))
            bar.update(BIN)
    seen = jax.tree.map(lambda *leaves: np.moveaxis(np.concatenate(leaves), 0, 1), *parts)
    return Play(seen["regret"], seen["reward"], seen["optimal"], seen["trace"], memory)


class _World(NamedTuple):
    phases: systems.System
    best: jax.Array
    optimal: jax.Array
    starts: jax.Array
    agent_keys: jax.Array
    noise_keys: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _begin(
    agent: Agent, phases: systems.System, keys: jax.Array, starts: jax.Array, options: Any
) -> tuple[Any, _World]:
    actions = causal.all_actions(phases.noise_mean.shape[-1])
    rewards = jax.vmap(jax.vmap(lambda system: system.rewards(actions)))(phases)

    def start(system: systems.System) -> Any:
        known = Known(system.noise_mean[0], system.noise_scale[0], system.weights, starts)
        return agent.start(known, options)

    split = jax.vmap(jax.random.split)(keys)
    best, optimal = jnp.max(rewards, axis=-1), systems.is_optimal(rewards)
    world = _World(phases, best, optimal, starts, split[:, 0], split[:, 1])
    return jax.vmap(start)(phases), world


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(agent: Agent, memory: Any, world: _World, begin: jax.Array) -> tuple[Any, Any]:
    """One bin; compiled once an agent, whatever its options."""
    return jax.lax.scan(_step(agent, world), memory, begin + jnp.arange(BIN, dtype=jnp.int32))


def _step(agent: Agent, world: _World) -> Any:
    batch, _, _, nodes, _ = world.phases.weights.shape
    powers = 2 ** jnp.arange(nodes)[::-1]

    def step(memory: Any, time: jax.Array) -> tuple[Any, dict[str, Any]]:
        phase = jnp.sum(time >= world.starts)
        memory = jax.vmap(agent.prepare, (0, None))(memory, time)
        for service in agent.services:
            memory = _serve(service, memory, time, batch)
        keys = jax.vmap(jax.random.fold_in, (0, None))(world.agent_keys, time)
        memory, actions = jax.vmap(agent.choose, (0, None, 0))(memory, time, keys)
        trace = jax.vmap(agent.trace)(memory)
        system = jax.tree.map(lambda leaf: leaf[:, phase], world.phases)
        noise_keys = jax.vmap(jax.random.fold_in, (0, None))(world.noise_keys, time)
        seen = jax.vmap(respond)(noise_keys, system, actions)
        memory = jax.vmap(agent.observe, (0, None, 0, 0))(memory, time, actions, seen)
        arm = actions @ powers
        happened = {
            "regret": world.best[:, phase] - seen[:, -1],
            "reward": seen[:, -1],
            "optimal": world.optimal[jnp.arange(batch), phase, arm],
            "trace": trace,
        }
        return memory, happened

    return step


def respond(key: jax.Array, system: systems.System, action: jax.Array) -> jax.Array:
    """The values of all nodes under an action.

    Args:
      key: Randomness of the noise.
      system: One system.
      action: Bits (N,).

    Returns:
      Values (N,).
    """
    normal = jax.random.normal(key, system.noise_mean.shape)
    noise = system.noise_mean + system.noise_scale * normal
    weights = causal.post_intervention(
        observational=system.weights[0], interventional=system.weights[1], action=action
    )
    values = noise
    # No action makes a cycle, so these products are exact; a batch of them is faster than a batch
    # of eliminations, and two such batches at once can stop XLA's threads on a CPU for ever.
    for _ in range(len(noise) - 1):
        values = noise + values @ weights
    return values


def _serve(service: Service, memory: Any, time: jax.Array, batch: int) -> Any:
    """Does the work for the instances that want it, `lanes` at a time."""
    lanes = min(service.lanes, batch)

    def some(state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        memory, waiting = state
        chosen = jnp.nonzero(waiting, size=lanes, fill_value=batch)[0]
        # Lanes to spare repeat the last instance, and what they find is dropped.
        theirs = jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="clip"), memory)
        # Of one instance nothing here depends on who waits: without the barrier XLA moves the work
        # before the loop, where it is done at every step.
        theirs, waiting = jax.lax.optimization_barrier((theirs, waiting))
        found = jax.vmap(service.work, (0, None))(theirs, time)
        changed = {
            name: jax.tree.map(
                lambda old, new: old.at[chosen].set(new, mode="drop"), getattr(memory, name), value
            )
            for name, value in found.items()
        }
        return memory._replace(**changed), waiting.at[chosen].set(False, mode="drop")

    waiting = jax.vmap(service.wants, (0, None))(memory, time)
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), some, (memory, waiting))[0]
