"""The gradient of the return through the simulator, over short horizons.

Beyond a horizon a critic takes over.  It sees what the critics of TD3 see: noise-free states, rotor
speeds and disturbance; the actor sees noise and its last actions.  The scheme is that of short
horizon actor-critic (Xu et al., ICLR 2022, arXiv 2204.07137).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from asym import control, dynamics
from experiments.learning_to_fly import flight, networks
from experiments.learning_to_fly.flight import SENSED_SIZE, Flight

GAMMA = 0.99
TAU = 0.2
CLIP_NORM = 1.0
CRITIC_UPDATES = 8


class State(NamedTuple):
    """One seed's training.

    Attributes:
      actor: Parameters of the policy.
      critic: Parameters of the value.
      target_critic: Slow copy, which the actor climbs.
      actor_moments: State of the actor's optimiser.
      critic_moments: State of the critic's optimiser.
      flights: The vehicles in the air (bptt_envs,).
    """

    actor: Any
    critic: Any
    target_critic: Any
    actor_moments: Any
    critic_moments: Any
    flights: Flight


class Rollout(NamedTuple):
    """A horizon; arrays are (horizon, bptt_envs, ...).

    Attributes:
      seen: What the critic saw before each step.
      reward: Of each step.
      failed: Whether the episode failed there.
      over: Whether it ended there, by failure or by time.
      following: The slow critic's value of the state after the step.
    """

    seen: Float[Array, "horizon envs size"]
    reward: Float[Array, "horizon envs"]
    failed: Any
    over: Any
    following: Float[Array, "horizon envs"]


class Learner:
    """The training of one seed as pure functions.

    Attributes:
      actor: The policy.
      critic: The value of a state.
    """

    def __init__(self, config: Any, task: flight.Task) -> None:
        self._config = config
        self._task = task
        self._weights = (
            dynamics.INITIAL_WEIGHTS if config.initial_reward else dynamics.TARGET_WEIGHTS
        )
        self.actor = networks.Actor(task.actor_size)
        self.critic = networks.Critic(flight.CRITIC_SIZE if config.asymmetric else task.actor_size)
        fading = optax.linear_schedule(config.bptt_actor_rate, 0.0, config.bptt_updates)
        self._actor_rule = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(fading))
        self._critic_rule = optax.chain(
            optax.clip_by_global_norm(CLIP_NORM), optax.adam(config.bptt_critic_rate)
        )

    def init(self, key: PRNGKeyArray) -> State:
        """One seed's beginning.

        Args:
          key: The seed's key.

        Returns:
          The state.
        """
        actor_key, critic_key, flight_key = jax.random.split(key, 3)
        actor, critic = self.actor.init(actor_key), self.critic.init(critic_key)
        return State(
            actor,
            critic,
            critic,
            self._actor_rule.init(actor),
            self._critic_rule.init(critic),
            self._task.begin(flight_key, (self._config.bptt_envs,)),
        )

    def step(
        self, state: State, update: jax.Array, key: PRNGKeyArray
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update of the actor, and those of the critic that follow.

        Args:
          state: One seed's state.
          update: Its number; unused, because nothing is scheduled by it.
          key: Its random key.

        Returns:
          The state after it, and what happened.
        """
        rollout_key, shuffle_key = jax.random.split(key)
        gradient, (flights, rollout, value) = jax.grad(self.objective, has_aux=True)(
            state.actor, state.target_critic, state.flights, rollout_key
        )
        updates, actor_moments = self._actor_rule.update(gradient, state.actor_moments)
        actor = optax.apply_updates(state.actor, updates)
        critic, critic_moments, loss = self._critic_learns(state, rollout, shuffle_key)
        slow = control.polyak(target=state.target_critic, online=critic, tau=TAU)
        metrics = {
            "value": value,
            "critic_loss": loss,
            "gradient": optax.tree.norm(gradient),
            "failures": 100 * jnp.mean(rollout.failed.astype(jnp.float32)),
        }
        return State(actor, critic, slow, actor_moments, critic_moments, flights), metrics

    def objective(
        self, actor: Any, critic: Any, flights: Flight, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[Flight, Rollout, Float[Array, ""]]]:
        """What the actor descends: the negative mean return of a horizon and of what follows.

        Where an episode ends within the horizon the return ends too, with the value of the last
        state if time ran out, and a new one begins.

        Args:
          actor: Parameters of the policy.
          critic: Parameters of the slow critic.
          flights: Where the horizon begins.
          key: Of noise and of new episodes.

        Returns:
          The scalar; the flights after the horizon, the rollout and the mean return.
        """
        horizon, envs = self._config.bptt_horizon, self._config.bptt_envs
        noise_key, reset_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (horizon, envs, SENSED_SIZE))
        resets = self._task.begin(reset_key, (horizon, envs))

        def one(carry: Any, given: Any) -> tuple[Any, Rollout]:
            flights, discount, total = carry
            blur, fresh, last = given
            seen = flight.with_history(
                self._task.sense(flights, blur), self._task.remembered(flights)
            )
            action = self.actor.act(actor, seen)
            after = self._task.advance(flights, action)
            failed = dynamics.terminated(after.vehicle.body)
            over = failed | (after.age >= flight.EPISODE)
            reward = dynamics.quadrotor_reward(
                flights.vehicle.body,
                action=flight.rotors(action),
                next_body=after.vehicle.body,
                weights=self._weights,
                dt=flight.DT,
            )
            following = self.critic.value(critic, self._critic_sight(after, blur))
            rest = jnp.where((over | last) & ~failed, GAMMA * following, 0.0)
            total = total + discount * (reward + rest)
            discount = jnp.where(over, 1.0, GAMMA * discount)
            told = Rollout(self._critic_sight(flights, blur), reward, failed, over, following)
            return (flight.choose(over, fresh, after), discount, total), told

        start = (flights, jnp.ones(envs), jnp.zeros(envs))
        last = jnp.arange(horizon) == horizon - 1
        (flights, _, total), rollout = jax.lax.scan(one, start, (noise, resets, last))
        value = jnp.mean(total)
        return -value / horizon, (flights, jax.lax.stop_gradient(rollout), value)

    def _critic_sight(self, flights: Flight, blur: jax.Array) -> jax.Array:
        if self._config.asymmetric:
            return flight.critic_sight(flights)
        return flight.with_history(self._task.sense(flights, blur), self._task.remembered(flights))

    def targets(self, rollout: Rollout) -> Float[Array, "horizon envs"]:
        """Returns with traces, ``G_t = r_t + gamma ((1 - l) V_{t+1} + l G_{t+1})``.

        At a failure nothing follows; where time runs out, and at the horizon, the value does.

        Args:
          rollout: A horizon.

        Returns:
          What the critic should have said.
        """
        trace = self._config.bptt_lambda

        def back(later: jax.Array, at: Any) -> tuple[jax.Array, jax.Array]:
            reward, failed, over, following = at
            mixed = jnp.where(over, following, (1 - trace) * following + trace * later)
            now = reward + jnp.where(failed, 0.0, GAMMA * mixed)
            return now, now

        steps = (rollout.reward, rollout.failed, rollout.over, rollout.following)
        return jax.lax.scan(back, rollout.following[-1], steps, reverse=True)[1]

    def _critic_learns(
        self, state: State, rollout: Rollout, key: PRNGKeyArray
    ) -> tuple[Any, Any, jax.Array]:
        """Minibatches of the horizon, each seen once."""
        targets = self.targets(rollout)
        count = targets.size
        size = max(1, count // CRITIC_UPDATES)
        order = jax.random.permutation(key, count)[: size * (count // size)].reshape(-1, size)
        seen, wanted = rollout.seen.reshape(count, -1), targets.reshape(count)

        def update(carry: Any, chosen: jax.Array) -> tuple[Any, jax.Array]:
            critic, moments = carry

            def loss(critic: Any) -> jax.Array:
                q = self.critic.value(critic, seen[chosen])
                return control.td3_critic_loss(q, target=wanted[chosen])

            value, gradient = jax.value_and_grad(loss)(critic)
            updates, moments = self._critic_rule.update(gradient, moments)
            return (optax.apply_updates(critic, updates), moments), value

        carry, losses = jax.lax.scan(update, (state.critic, state.critic_moments), order)
        return *carry, jnp.mean(losses)
