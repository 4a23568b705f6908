"""The environment: a quadrotor, what disturbs it, its last actions and how long it has flown."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from asym import dynamics
from experiments.learning_to_fly import simulators

# Sizes of what the critic sees, and of what the actor sees besides its history.
CRITIC_SIZE = 28
SENSED_SIZE = 18
ACTIONS = 4
DT = 0.01
EPISODE = 500
NO_ROTORS = dynamics.Rotors(0.0, 0.0, 0.0, 0.0)


class Flight(NamedTuple):
    """Vehicles in the air; every array has the shape of the batch in front.

    Attributes:
      vehicle: Pose, velocities and rotor speeds.
      disturbance: What pushes during this episode.
      history: The last actions (..., history_len, 4), oldest first, 0 before the episode; where
        the actor sees none, one row that stays 0.
      age: Steps since the beginning of the episode.
    """

    vehicle: dynamics.Quadrotor
    disturbance: dynamics.Disturbance
    history: Float[Array, "*batch steps 4"]
    age: Int[Array, "*batch"]


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of hovering, with parts of it left out for the ablations.

    Attributes:
      history_len: Actions that the actor sees.
      rotor_delay: Whether rotors need time to reach their set-points.
      disturbance: Whether a constant force and torque push.
      observation_noise: Whether the actor's sight is noisy.
      simulator: How a step is computed.
    """

    history_len: int = 32
    rotor_delay: bool = True
    disturbance: bool = True
    observation_noise: bool = True
    simulator: str = simulators.RK4_SOA

    @property
    def actor_size(self) -> int:
        """How many numbers the actor sees."""
        return SENSED_SIZE + ACTIONS * self.history_len

    def begin(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Flight:
        """First states of episodes.

        Args:
          key: Random key.
          shape: Of the batch.

        Returns:
          The flights.
        """
        law = dynamics.INITIAL_STATES
        if not self.disturbance:
            law = law._replace(force_std=0.0, torque_std=0.0)
        vehicle, disturbance = dynamics.sample_initial_state(key, law=law, shape=shape)
        # One row at least: an array without numbers cannot be stored in a checkpoint.
        history = jnp.zeros((*shape, max(1, self.history_len), ACTIONS))
        return Flight(vehicle, disturbance, history, jnp.zeros(shape, jnp.int32))

    def advance(self, flight: Flight, action: Float[Array, "*batch 4"]) -> Flight:
        """One step of 10 ms.

        Args:
          flight: The flights.
          action: Normalised set-points.

        Returns:
          The flights after it.
        """
        vehicle = simulators.step(
            flight.vehicle,
            action=rotors(action),
            disturbance=flight.disturbance,
            simulator=self.simulator,
            rotor_delay=self.rotor_delay,
            dt=DT,
        )
        history = flight.history
        if self.history_len:
            history = dynamics.push_history(history, action)
        return Flight(vehicle, flight.disturbance, history, flight.age + 1)

    def sense(
        self, flight: Flight, draws: Float[Array, "*batch 18"] | None
    ) -> Float[Array, "*batch 18"]:
        """What the actor senses: pose and velocities, without the history of its actions.

        Args:
          flight: The flights.
          draws: Standard normal numbers for the noise; unused if the task has none.

        Returns:
          Position, rotation matrix, velocity and angular velocity.
        """
        return dynamics.observe_actor(
            flight.vehicle.body,
            history=flight.history[..., :0, :],
            draws=draws if self.observation_noise else None,
        )

    def remembered(self, flight: Flight) -> Float[Array, "*batch steps 4"]:
        """The actions that the actor sees.

        Args:
          flight: The flights.

        Returns:
          The last actions (..., history_len, 4), oldest first.
        """
        return flight.history[..., : self.history_len, :]


def with_history(
    sensed: Float[Array, "*batch 18"], history: Float[Array, "*batch steps 4"]
) -> Float[Array, "*batch size"]:
    """What the actor sees: what it senses, and its last actions, oldest first.

    Args:
      sensed: Pose and velocities.
      history: Actions.

    Returns:
      Observations.
    """
    return jnp.concatenate([sensed, history.reshape(*sensed.shape[:-1], -1)], axis=-1)


def rotors(action: Float[Array, "*batch 4"]) -> dynamics.Rotors:
    """Actions as components.

    Args:
      action: The last axis counts rotors.

    Returns:
      One component a rotor.
    """
    return dynamics.unpack(action, like=NO_ROTORS)


def critic_sight(flight: Flight) -> Float[Array, "*batch 28"]:
    """What the critic sees.

    Args:
      flight: The flights.

    Returns:
      Observations.
    """
    return dynamics.observe_critic(flight.vehicle, disturbance=flight.disturbance)


def choose(condition: Bool[Array, "*batch"], yes: Flight, no: Flight) -> Flight:
    """One flight or the other, place by place.

    Args:
      condition: Where the first is taken.
      yes: The first.
      no: The second.

    Returns:
      The flights.
    """

    def pick(a: Any, b: Any) -> Any:
        wide = condition.reshape(condition.shape + (1,) * (jnp.ndim(b) - condition.ndim))
        return jnp.where(wide, a, b)

    return jax.tree.map(pick, yes, no)
