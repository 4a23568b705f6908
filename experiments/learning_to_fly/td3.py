"""TD3 on its own replay memory: a block of environment steps and the updates that follow them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from asym import control, dynamics
from experiments.learning_to_fly import flight, networks, replay
from experiments.learning_to_fly.flight import ACTIONS, SENSED_SIZE, Flight

CRITICS = 2
LEARNING_RATE = 1e-3
GAMMA = 0.99
TAU = 0.005
BATCH = 256
# Environment steps between updates of the critics; the actor has one for two of theirs.
CRITIC_EVERY = 10
# The noises of a long training shrink by this factor with each further stage.
DECAY, DECAY_EVERY, DECAY_FROM = 0.9, 100_000, 500_000


class Networks(NamedTuple):
    """What learns.

    Attributes:
      actor: Parameters of the policy.
      critics: Parameters of both critics, stacked.
      target_actor: Slow copy.
      target_critics: Slow copies.
      actor_moments: State of the actor's optimiser.
      critic_moments: States of the critics' optimisers, stacked.
    """

    actor: Any
    critics: Any
    target_actor: Any
    target_critics: Any
    actor_moments: Any
    critic_moments: Any


class State(NamedTuple):
    """One seed's training.

    Attributes:
      networks: What learns.
      flights: The vehicles in the air (num_envs,).
      memory: What they have lived through.
    """

    networks: Networks
    flights: Flight
    memory: replay.Memory


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When what happens, in steps that all environments take together.

    A block is two halves: steps, then updates of the critics; after both an update of the actor.

    Attributes:
      num_envs: Environments.
      half: Steps of half a block.
      critic_updates: Of each critic in half a block.
      actor_updates: In a block.
      blocks: Blocks of the training.
    """

    num_envs: int
    half: int
    critic_updates: int
    actor_updates: int
    blocks: int

    @property
    def block(self) -> int:
        """Environment steps of a block."""
        return 2 * self.half * self.num_envs

    @property
    def capacity(self) -> int:
        """Steps that the memory holds: all, with the first one, which comes before any block."""
        return 1 + 2 * self.half * self.blocks


def schedule(*, steps: int, num_envs: int, updates_per_env_step: float) -> Schedule:
    """The schedule of a training.

    Args:
      steps: Environment steps in all.
      num_envs: Environments.
      updates_per_env_step: Updates of each critic for an environment step.

    Returns:
      The schedule; the last block may end beyond the steps by less than a block.
    """
    half = max(1, round(1 / (updates_per_env_step * num_envs)))
    updates = max(1, round(updates_per_env_step * num_envs * half))
    block = 2 * half * num_envs
    return Schedule(num_envs, half, updates, updates, -(-steps // block))


class Learner:
    """The training of one seed as pure functions.

    Attributes:
      schedule: When what happens.
      rewards: The reward and its curriculum.
      actor: The policy.
      critic: A value of what is seen and done.
    """

    def __init__(self, config: Any, task: flight.Task) -> None:
        self._config = config
        self._task = task
        self.schedule = schedule(
            steps=config.steps,
            num_envs=config.num_envs,
            updates_per_env_step=config.updates_per_env_step,
        )
        self.rewards = replay.curriculum(
            steps=config.steps,
            every=config.curriculum_every,
            raised=config.curriculum,
            initial=config.initial_reward,
            recalculate=config.recalculate_rewards,
        )
        self.actor = networks.Actor(task.actor_size)
        seen = flight.CRITIC_SIZE if config.asymmetric else task.actor_size
        self.critic = networks.Critic(seen + ACTIONS)
        self._optimizer = control.td3_optimizer(LEARNING_RATE)

    def init(self, key: PRNGKeyArray) -> State:
        """One seed's beginning, with the first step taken.

        Args:
          key: The seed's key.

        Returns:
          The state.
        """
        actor_key, critic_key, flight_key, step_key = jax.random.split(key, 4)
        actor = self.actor.init(actor_key)
        critics = jax.vmap(self.critic.init)(jax.random.split(critic_key, CRITICS))
        learning = Networks(
            actor,
            critics,
            actor,
            critics,
            self._optimizer.init(actor),
            jax.vmap(self._optimizer.init)(critics),
        )
        num_envs = self.schedule.num_envs
        memory = replay.empty(self._task, capacity=self.schedule.capacity, num_envs=num_envs)
        state = State(learning, self._task.begin(flight_key, (num_envs,)), memory)
        return self._collect(state, step_key, at=jnp.zeros((), jnp.int32), steps=1)[0]

    def step(
        self, state: State, block: jax.Array, key: PRNGKeyArray
    ) -> tuple[State, dict[str, jax.Array]]:
        """One block of the schedule.

        Args:
          state: One seed's state.
          block: Its number, from 0.
          key: Its random key.

        Returns:
          The state after it, and what happened.
        """
        half, plan = self.schedule.half, self.schedule
        begin = 1 + 2 * half * block

        # A loop, not two calls: with two writings in one body, and readings in between whose order
        # nothing prescribes, the compiler would copy the whole memory.
        def half_block(part: jax.Array, carry: Any) -> Any:
            state, _, failures = carry
            collect_key, learn_key = jax.random.split(jax.random.fold_in(key, part))
            now = begin + part * half
            state, failed = self._collect(state, collect_key, at=now, steps=half)
            state, told = self._critics_learn(state, learn_key, now + half)
            return state, told, failures + failed

        start = state, jnp.zeros(2), jnp.zeros(())
        state, (loss, value), failures = jax.lax.fori_loop(0, 2, half_block, start)
        state = self._actor_learns(state, jax.random.fold_in(key, 2), begin + 2 * half)
        metrics = {
            "critic_loss": loss,
            "q": value,
            "failures_per_100_steps": failures / (plan.block / 100),
        }
        return state, metrics

    def _collect(
        self, state: State, key: PRNGKeyArray, *, at: jax.Array, steps: int
    ) -> tuple[State, jax.Array]:
        """Steps of all environments, with the actor as it is; how many of them failed."""
        num_envs = self.schedule.num_envs
        noise_key, reset_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (steps, num_envs, 2 * SENSED_SIZE + ACTIONS))
        # All at once, because one by one costs more than the physics; most are not needed.
        resets = self._task.begin(reset_key, (steps, num_envs))
        scale = self._exploration(at)

        def one(flights: Flight, given: Any) -> tuple[Flight, Any]:
            noise, fresh = given
            blur, next_blur, exploration = jnp.split(noise, [SENSED_SIZE, 2 * SENSED_SIZE], -1)
            sensed = self._task.sense(flights, blur)
            seen = flight.with_history(sensed, self._task.remembered(flights))
            action = self.actor.act(state.networks.actor, seen)
            action = jnp.clip(action + scale * exploration, -1.0, 1.0)
            after = self._task.advance(flights, action)
            failed = dynamics.terminated(after.vehicle.body)
            over = failed | (after.age >= flight.EPISODE)
            next_sensed = self._task.sense(after, next_blur)
            row = replay.record(flights, after, sensed=sensed, next_sensed=next_sensed)
            return flight.choose(over, fresh, after), (row, action, jnp.sum(failed))

        flights, (rows, actions, failed) = jax.lax.scan(one, state.flights, (noise, resets))
        memory = replay.write(state.memory, rows, actions, at)
        failures = jnp.sum(failed).astype(jnp.float32)
        return State(state.networks, flights, memory), failures

    def _exploration(self, at: jax.Array) -> Any:
        return self._config.exploration_noise * self._decay(at)

    def _decay(self, at: jax.Array) -> Any:
        """How much of the noise is left; without effect before step 500,000."""
        if not self._config.exploration_decay or self._config.steps <= DECAY_FROM:
            return 1.0
        stages = at * self.schedule.num_envs // DECAY_EVERY - DECAY_FROM // DECAY_EVERY + 1
        return DECAY ** jnp.maximum(stages, 0).astype(jnp.float32)

    def _minibatch(
        self, memory: replay.Memory, key: PRNGKeyArray, stored: jax.Array, shape: tuple[int, ...]
    ) -> replay.Minibatch:
        drawn = replay.draw(memory, key, stored=stored, shape=shape)
        num_envs = self.schedule.num_envs
        reward = self.rewards.of(drawn, now=(stored - 1) * num_envs, num_envs=num_envs)
        return replay.observe(drawn, reward, asymmetric=self._config.asymmetric)

    def _critics_learn(
        self, state: State, key: PRNGKeyArray, stored: jax.Array
    ) -> tuple[State, jax.Array]:
        """Updates of both critics, each on minibatches of its own; loss and mean value."""

        def update(i: jax.Array, carry: Any) -> Any:
            learning, _ = carry
            draw_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
            batch = self._minibatch(state.memory, draw_key, stored, (CRITICS, BATCH))
            return self.critic_update(learning, batch, noise_key, self._decay(stored - 1))

        warm = (stored - 1) * self.schedule.num_envs > self._config.critic_warmup
        # No passes instead of a condition, which would copy the memory that it reads.
        passes = jnp.where(warm, self.schedule.critic_updates, 0)
        learning, told = jax.lax.fori_loop(0, passes, update, (state.networks, jnp.zeros(2)))
        return state._replace(networks=learning), told

    def critic_update(
        self, learning: Networks, batch: replay.Minibatch, key: PRNGKeyArray, decay: Any = 1.0
    ) -> tuple[Networks, jax.Array]:
        """One step of both critics and of their slow copies.

        Args:
          learning: What learns.
          batch: A minibatch for each critic (2, batch).
          key: Of the noise on the target's actions.
          decay: Factor of that noise.

        Returns:
          What learns, and the loss and the value in the mean over both (2,).
        """
        config = self._config
        target_action = control.smoothed_action(
            self.actor.act(learning.target_actor, batch.next_actor_seen),
            key=key,
            std=config.target_noise * decay,
            clip=config.target_noise_clip * decay,
        )
        following = jnp.concatenate([batch.next_critic_seen, target_action], axis=-1)
        q1, q2 = (
            self.critic.value(jax.tree.map(lambda x, k=k: x[k], learning.target_critics), following)
            for k in range(CRITICS)
        )
        target = control.td3_target(
            batch.reward, terminated=batch.terminated, q1=q1, q2=q2, gamma=GAMMA
        )
        judged = jnp.concatenate([batch.critic_seen, batch.action], axis=-1)

        def loss(critics: Any) -> tuple[jax.Array, jax.Array]:
            q = jax.vmap(self.critic.value)(critics, judged)
            losses = jax.vmap(lambda q, y: control.td3_critic_loss(q, target=y))(q, target)
            # The critics share no parameters: the gradient of the sum is that of each.
            return jnp.sum(losses), jnp.stack([jnp.mean(losses), jnp.mean(q)])

        gradient, told = jax.grad(loss, has_aux=True)(learning.critics)
        critics, moments = jax.vmap(self._apply)(
            gradient, learning.critic_moments, learning.critics
        )
        slow = control.polyak(target=learning.target_critics, online=critics, tau=TAU)
        return learning._replace(critics=critics, critic_moments=moments, target_critics=slow), told

    def _actor_learns(self, state: State, key: PRNGKeyArray, stored: jax.Array) -> State:
        def update(i: jax.Array, learning: Networks) -> Networks:
            draw_key = jax.random.fold_in(key, i)
            return self.actor_update(
                learning, self._minibatch(state.memory, draw_key, stored, (BATCH,))
            )

        warm = (stored - 1) * self.schedule.num_envs > self._config.actor_warmup
        passes = jnp.where(warm, self.schedule.actor_updates, 0)
        learning = jax.lax.fori_loop(0, passes, update, state.networks)
        return state._replace(networks=learning)

    def actor_update(self, learning: Networks, batch: replay.Minibatch) -> Networks:
        """One step of the actor and of its slow copy.

        Args:
          learning: What learns.
          batch: A minibatch.

        Returns:
          What learns.
        """
        first = jax.tree.map(lambda x: x[0], learning.critics)

        def loss(actor: Any) -> jax.Array:
            action = self.actor.act(actor, batch.actor_seen)
            judged = jnp.concatenate([batch.critic_seen, action], axis=-1)
            return control.td3_actor_loss(self.critic.value(first, judged))

        gradient = jax.grad(loss)(learning.actor)
        actor, moments = self._apply(gradient, learning.actor_moments, learning.actor)
        slow = control.polyak(target=learning.target_actor, online=actor, tau=TAU)
        return learning._replace(actor=actor, actor_moments=moments, target_actor=slow)

    def _apply(self, gradient: Any, moments: Any, params: Any) -> tuple[Any, Any]:
        updates, moments = self._optimizer.update(gradient, moments, params)
        return jax.tree.map(jnp.add, params, updates), moments
