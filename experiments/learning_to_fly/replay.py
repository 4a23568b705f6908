"""Replay memory in compact form: what happened, from which all else follows.

A transition is the state before and after it, the disturbance, the age of the episode and what the
actor sensed before and after, with its noise: 77 numbers, and the 4 of the action.  Rewards,
terminations, the critic's observations and the histories of actions are computed for the
transitions that are drawn.  Relabelling the memory after a change of the reward's weights is
therefore exact and free, and histories cost no memory, because actions are stored in the order in
which they were taken.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from asym import dynamics
from experiments.learning_to_fly import flight
from experiments.learning_to_fly.flight import ACTIONS, SENSED_SIZE, Flight, Task

_NO_VECTOR = dynamics.Vector(0.0, 0.0, 0.0)
_VEHICLE = dynamics.Quadrotor(
    dynamics.RigidBody(_NO_VECTOR, dynamics.Quaternion(0.0, 0.0, 0.0, 0.0), _NO_VECTOR, _NO_VECTOR),
    flight.NO_ROTORS,
)
_RECORD = (_VEHICLE, _VEHICLE, dynamics.Disturbance(_NO_VECTOR, _NO_VECTOR), 0.0)
_STATE_SIZE = len(jax.tree.leaves(_RECORD))
RECORD_SIZE = _STATE_SIZE + 2 * SENSED_SIZE


class Memory(NamedTuple):
    """All transitions so far.

    Attributes:
      records: States before and after, disturbance, age, and what was sensed
        (num_envs, time, 77).
      actions: As taken (num_envs, history_len + time, 4); the first rows are 0.
    """

    records: Float[Array, "envs time size"]
    actions: Float[Array, "envs padded 4"]


class Transitions(NamedTuple):
    """Transitions drawn from a memory.

    Attributes:
      before: Flights before the step (batch,).
      sensed: What the actor sensed then (batch, 18).
      action: What it did (batch, 4).
      after: Flights after the step.
      next_sensed: What the actor sensed after it.
      time: When it was (batch,), in steps of all environments together.
    """

    before: Flight
    sensed: Float[Array, "*batch 18"]
    action: Float[Array, "*batch 4"]
    after: Flight
    next_sensed: Float[Array, "*batch 18"]
    time: Int[Array, "*batch"]


class Minibatch(NamedTuple):
    """What an update needs.

    Attributes:
      actor_seen: What the actor saw (batch, actor_size).
      critic_seen: What the critic saw (batch, critic_size).
      action: What was done (batch, 4).
      reward: Of the step (batch,).
      terminated: Whether the step ended in failure (batch,).
      next_actor_seen: What the actor saw after it.
      next_critic_seen: What the critic saw after it.
    """

    actor_seen: Float[Array, "*batch actor_size"]
    critic_seen: Float[Array, "*batch critic_size"]
    action: Float[Array, "*batch 4"]
    reward: Float[Array, "*batch"]
    terminated: Bool[Array, "*batch"]
    next_actor_seen: Float[Array, "*batch actor_size"]
    next_critic_seen: Float[Array, "*batch critic_size"]


def empty(task: Task, *, capacity: int, num_envs: int) -> Memory:
    """A memory without transitions.

    Args:
      task: The task.
      capacity: Steps of all environments together that it will hold.
      num_envs: Environments.

    Returns:
      The memory.
    """
    return Memory(
        jnp.zeros((num_envs, capacity, RECORD_SIZE)),
        jnp.zeros((num_envs, task.history_len + capacity, ACTIONS)),
    )


def record(
    before: Flight,
    after: Flight,
    *,
    sensed: Float[Array, "*batch 18"],
    next_sensed: Float[Array, "*batch 18"],
) -> Float[Array, "*batch size"]:
    """A transition as a row of a memory, but for its action.

    Args:
      before: Flights before the step.
      after: Flights after it.
      sensed: What the actor sensed before it.
      next_sensed: What it sensed after it.

    Returns:
      Rows.
    """
    age = before.age.astype(jnp.float32)
    state = dynamics.pack((before.vehicle, after.vehicle, before.disturbance, age))
    return jnp.concatenate([state, sensed, next_sensed], axis=-1)


def write(
    memory: Memory,
    records: Float[Array, "steps envs size"],
    actions: Float[Array, "steps envs 4"],
    at: Int[Array, ""],
) -> Memory:
    """Stores steps that follow each other.

    Args:
      memory: The memory.
      records: Their rows.
      actions: Their actions.
      at: Time of the first one.

    Returns:
      The memory with them.
    """
    padding = memory.actions.shape[1] - memory.records.shape[1]
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return Memory(
        put(memory.records, jnp.swapaxes(records, 0, 1), start_index=at),
        put(memory.actions, jnp.swapaxes(actions, 0, 1), start_index=at + padding),
    )


def draw(
    memory: Memory, key: PRNGKeyArray, *, stored: Int[Array, ""], shape: tuple[int, ...]
) -> Transitions:
    """Draws transitions uniformly, with replacement.

    Args:
      memory: The memory.
      key: Random key.
      stored: How many steps of all environments it holds, at least 1.
      shape: How many to draw.

    Returns:
      The transitions; whatever has been stored since the last draw can be among them.
    """
    num_envs = memory.records.shape[0]
    place = jax.random.randint(key, shape, 0, stored * num_envs)
    return at(memory, time=place // num_envs, env=place % num_envs)


def at(memory: Memory, *, time: Int[Array, "*batch"], env: Int[Array, "*batch"]) -> Transitions:
    """The transitions at given places.

    Args:
      memory: The memory.
      time: Steps of all environments together, from 0.
      env: Environments.

    Returns:
      The transitions.
    """
    history_len = memory.actions.shape[1] - memory.records.shape[1]

    def look(time: jax.Array, env: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Contiguous slices: an index for each number would cost three times as much.
        rows = jax.lax.dynamic_slice(memory.records, (env, time, 0), (1, 1, RECORD_SIZE))
        # Row t of the padded actions is the oldest that is remembered at step t.
        window = jax.lax.dynamic_slice(
            memory.actions, (env, time, 0), (1, history_len + 1, ACTIONS)
        )
        return rows[0, 0], window[0]

    rows, actions = jax.vmap(look)(time.reshape(-1), env.reshape(-1))
    rows, actions = (x.reshape(*time.shape, *x.shape[1:]) for x in (rows, actions))
    before, after, disturbance, stored_age = dynamics.unpack(rows[..., :_STATE_SIZE], like=_RECORD)
    age = jnp.asarray(stored_age).astype(jnp.int32)
    sensed, next_sensed = jnp.split(rows[..., _STATE_SIZE:], 2, axis=-1)

    def of_this_episode(history: jax.Array, age: jax.Array) -> jax.Array:
        steps_ago = jnp.arange(history_len, 0, -1)
        return jnp.where((steps_ago <= age[..., None])[..., None], history, 0.0)

    return Transitions(
        Flight(before, disturbance, of_this_episode(actions[..., :-1, :], age), age),
        sensed,
        actions[..., -1, :],
        Flight(after, disturbance, of_this_episode(actions[..., 1:, :], age + 1), age + 1),
        next_sensed,
        time,
    )


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The reward, whose weights grow with the curriculum.

    Attributes:
      stages: Weights of one stage of the curriculum after the other.
      every: Environment steps of a stage.
      recalculate: Whether old transitions are judged by the weights of now.
    """

    stages: tuple[dynamics.RewardWeights, ...]
    every: int
    recalculate: bool

    def weights(self, env_steps: Int[Array, "*batch"]) -> dynamics.RewardWeights:
        """The weights in force.

        Args:
          env_steps: Index of an environment step, from 0.

        Returns:
          The weights of its stage.
        """
        stage = jnp.minimum(env_steps // self.every, len(self.stages) - 1)

        def pick(*values: Any) -> Any:
            # What never changes stays a number: a weight of 0 spares its cost.
            return values[0] if len(set(values)) == 1 else jnp.asarray(values, jnp.float32)[stage]

        return jax.tree.map(pick, *self.stages)

    def of(
        self, drawn: Transitions, *, now: Int[Array, ""], num_envs: int = 1
    ) -> Float[Array, "*batch"]:
        """Rewards of transitions.

        Args:
          drawn: The transitions.
          now: Index of the environment step at which they are judged.
          num_envs: Environments, which take one environment step each at a time.

        Returns:
          One reward each; 0 where the step ended in failure.
        """
        when = now if self.recalculate else drawn.time * num_envs
        return dynamics.quadrotor_reward(
            drawn.before.vehicle.body,
            action=flight.rotors(drawn.action),
            next_body=drawn.after.vehicle.body,
            weights=self.weights(when),
            dt=flight.DT,
        )


def curriculum(
    *, steps: int, every: int, raised: bool, initial: bool, recalculate: bool
) -> Rewards:
    """The rewards of a training.

    Args:
      steps: Environment steps of the training.
      every: Environment steps after which the weights are raised, unless the training is over.
      raised: Whether they are raised at all.
      initial: Whether they start from the initial weights, or from their targets.
      recalculate: Whether the memory is relabelled whenever they are raised.

    Returns:
      The rewards.
    """
    stages = [dynamics.INITIAL_WEIGHTS if initial else dynamics.TARGET_WEIGHTS]
    if raised:
        for _ in range((steps - 1) // every):
            stages.append(_numbers(dynamics.next_weights(stages[-1])))
    return Rewards(tuple(stages), every, recalculate)


def _numbers(weights: dynamics.RewardWeights) -> dynamics.RewardWeights:
    return dynamics.RewardWeights(*(float(value) for value in weights))


def observe(drawn: Transitions, reward: Float[Array, "*batch"], *, asymmetric: bool) -> Minibatch:
    """What actor and critic see of transitions.

    Args:
      drawn: The transitions.
      reward: Their rewards.
      asymmetric: Whether the critic sees what the actor cannot.

    Returns:
      The minibatch.
    """
    seen = flight.with_history(drawn.sensed, drawn.before.history)
    after = flight.with_history(drawn.next_sensed, drawn.after.history)
    return Minibatch(
        actor_seen=seen,
        critic_seen=flight.critic_sight(drawn.before) if asymmetric else seen,
        action=drawn.action,
        reward=reward,
        terminated=dynamics.terminated(drawn.after.vehicle.body),
        next_actor_seen=after,
        next_critic_seen=flight.critic_sight(drawn.after) if asymmetric else after,
    )
