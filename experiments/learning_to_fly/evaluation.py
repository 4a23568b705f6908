"""How well a policy hovers and follows a figure-eight, in the full environment.

Whatever a training left out, a policy is judged with rotor delay, disturbance and noise: they stand
for the real vehicle.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from asym import dynamics
from experiments.learning_to_fly import flight, networks
from experiments.learning_to_fly.flight import EPISODE, SENSED_SIZE, Flight

SETTLED_WITHIN = 0.2
# Steps after which the largest error of the rest of an episode is taken.
AFTER = (100, 200)
# The figure-eight: extents in m, and the periods of the paper in s.
EXTENT = (1.0, 0.5)
PERIODS = (15.0, 5.5, 3.5)


class Episodes(NamedTuple):
    """Deterministic episodes; arrays have the shape (episodes,).

    Attributes:
      length: Steps until the end, 500 at most.
      total: Sum of the rewards with the target weights.
      terminated: Whether it failed.
      settled: Whether it lasted and ended within 0.2 m of the origin.
      worst: Largest position error in m, angle in rad and velocity in m/s after 100 and after 200
        steps (2, 3, episodes); NaN for episodes that did not last so long.
    """

    length: Float[Array, " episodes"]
    total: Float[Array, " episodes"]
    terminated: Float[Array, " episodes"]
    settled: Float[Array, " episodes"]
    worst: Float[Array, "after errors episodes"]


def task_of(history_len: int) -> flight.Task:
    """The environment in which policies are judged.

    Args:
      history_len: Actions that the policy sees.

    Returns:
      The task with nothing left out.
    """
    return flight.Task(history_len=history_len)


def fly(
    actor: networks.Actor, params: Any, task: flight.Task, key: PRNGKeyArray, *, episodes: int
) -> Episodes:
    """Flies whole episodes without exploration.

    Args:
      actor: The policy.
      params: Its parameters.
      task: The environment.
      key: Of the beginnings and of the noise.
      episodes: How many.

    Returns:
      What became of them.
    """
    begin_key, noise_key = jax.random.split(key)
    zeros = jnp.zeros(episodes)
    start = (
        task.begin(begin_key, (episodes,)),
        jnp.ones(episodes, bool),
        zeros,
        zeros,
        jnp.zeros((len(AFTER), 3, episodes)),
    )

    def step(carry: Any, at: jax.Array) -> tuple[Any, None]:
        flights, alive, length, total, worst = carry
        action = policy(actor, params, task, flights, jax.random.fold_in(noise_key, at))
        after = task.advance(flights, action)
        reward = dynamics.quadrotor_reward(
            flights.vehicle.body,
            action=flight.rotors(action),
            next_body=after.vehicle.body,
            weights=dynamics.TARGET_WEIGHTS,
            dt=flight.DT,
        )
        errors = jnp.stack(errors_of(after))
        late = jnp.stack([at >= first for first in AFTER])[:, None, None]
        worst = jnp.where(late & alive, jnp.maximum(worst, errors), worst)
        total = total + jnp.where(alive, reward, 0.0)
        length = length + alive
        flights = flight.choose(alive, after, flights)
        return (flights, alive & ~dynamics.terminated(after.vehicle.body), length, total, worst), (
            None
        )

    (flights, alive, length, total, worst), _ = jax.lax.scan(step, start, jnp.arange(EPISODE))
    distance = errors_of(flights)[0]
    reached = length > jnp.asarray(AFTER)[:, None]
    return Episodes(
        length,
        total,
        (~alive).astype(jnp.float32),
        (alive & (distance < SETTLED_WITHIN)).astype(jnp.float32),
        jnp.where(reached[:, None], worst, jnp.nan),
    )


def policy(
    actor: networks.Actor, params: Any, task: flight.Task, flights: Flight, key: PRNGKeyArray
) -> Float[Array, "*batch 4"]:
    """Actions of a policy that sees the noisy state.

    Args:
      actor: The policy.
      params: Its parameters.
      task: The environment.
      flights: The flights.
      key: Of the noise.

    Returns:
      Actions.
    """
    draws = jax.random.normal(key, (*flights.age.shape, SENSED_SIZE))
    return actor.act(
        params, flight.with_history(task.sense(flights, draws), task.remembered(flights))
    )


def errors_of(flights: Flight) -> tuple[Any, Any, Any]:
    """Distances from hovering.

    Args:
      flights: The flights.

    Returns:
      Position error in m, angle in rad, speed in m/s.
    """
    body = flights.vehicle.body
    # Both q and -q are this orientation; rounding can make |w| larger than 1.
    angle = 2 * jnp.arccos(jnp.clip(jnp.abs(body.orientation.w), 0.0, 1.0))
    distance, speed = (jnp.sqrt(dynamics.squared_norm(v)) for v in (body.position, body.velocity))
    return distance, angle, speed


def paths(
    actor: networks.Actor, params: Any, task: flight.Task, key: PRNGKeyArray, *, episodes: int = 8
) -> Float[Array, "steps episodes 7"]:
    """Poses of a few episodes, for figures; a vehicle that has failed stays where it was.

    Args:
      actor: The policy.
      params: Its parameters.
      task: The environment.
      key: Of the beginnings and of the noise.
      episodes: How many.

    Returns:
      Position and quaternion before each step.
    """
    begin_key, noise_key = jax.random.split(key)
    start = task.begin(begin_key, (episodes,)), jnp.ones(episodes, bool)

    def step(carry: Any, at: jax.Array) -> tuple[Any, jax.Array]:
        flights, alive = carry
        action = policy(actor, params, task, flights, jax.random.fold_in(noise_key, at))
        after = flight.choose(alive, task.advance(flights, action), flights)
        body = flights.vehicle.body
        pose = dynamics.pack((body.position, body.orientation))
        return (after, alive & ~dynamics.terminated(after.vehicle.body)), pose

    return jax.lax.scan(step, start, jnp.arange(EPISODE))[1]


def summary(episodes: Episodes) -> dict[str, Float[Array, ""]]:
    """Means over episodes.

    Args:
      episodes: What became of them.

    Returns:
      Name to value.
    """
    return {
        "length": jnp.mean(episodes.length),
        "return": jnp.mean(episodes.total),
        "terminated": jnp.mean(episodes.terminated),
        "settled": jnp.mean(episodes.settled),
    }


def figure_eight(
    time: Float[Array, "*batch"], period: float
) -> tuple[dynamics.Vector, dynamics.Vector]:
    """The Lissajous figure and its velocity.

    ``p = (A sin(2 pi t/T), B sin(4 pi t/T), 0)`` with A = 1 m and B = 0.5 m.

    Args:
      time: In s.
      period: T in s.

    Returns:
      Position in m and velocity in m/s.
    """
    turn = 2 * jnp.pi / period
    (wide, high), zero = EXTENT, jnp.zeros_like(time)
    position = dynamics.Vector(wide * jnp.sin(turn * time), high * jnp.sin(2 * turn * time), zero)
    velocity = dynamics.Vector(
        wide * turn * jnp.cos(turn * time), 2 * high * turn * jnp.cos(2 * turn * time), zero
    )
    return position, velocity


def track(
    actor: networks.Actor,
    params: Any,
    task: flight.Task,
    key: PRNGKeyArray,
    *,
    period: float,
    laps: int,
) -> Float[Array, "steps 6"]:
    """Follows the figure-eight with a policy that has learnt to hover.

    The policy is told the position and velocity relative to the figure's.

    Args:
      actor: The policy.
      params: Its parameters.
      task: The environment.
      key: Of disturbance and noise.
      period: Seconds of a lap.
      laps: How many.

    Returns:
      Position of the vehicle and of the figure after each step.
    """
    begin_key, noise_key = jax.random.split(key)
    begun = task.begin(begin_key)
    still = dynamics.RigidBody(
        dynamics.Vector(*3 * [jnp.zeros(())]),
        dynamics.Quaternion(jnp.ones(()), *3 * [jnp.zeros(())]),
        dynamics.Vector(*3 * [jnp.zeros(())]),
        dynamics.Vector(*3 * [jnp.zeros(())]),
    )
    hover = dynamics.Rotors(*4 * [jnp.asarray(dynamics.hover_speed())])
    start = begun._replace(vehicle=dynamics.Quadrotor(still, hover))

    def step(now: Flight, at: jax.Array) -> tuple[Flight, Any]:
        goal, pace = figure_eight(at * flight.DT, period)
        body = now.vehicle.body
        seen = body._replace(
            position=dynamics.Vector(*map(jnp.subtract, body.position, goal)),
            velocity=dynamics.Vector(*map(jnp.subtract, body.velocity, pace)),
        )
        relative = now._replace(vehicle=now.vehicle._replace(body=seen))
        action = policy(actor, params, task, relative, jax.random.fold_in(noise_key, at))
        after = task.advance(now, action)
        following, _ = figure_eight((at + 1) * flight.DT, period)
        return after, dynamics.pack((after.vehicle.body.position, following))

    steps = round(period / flight.DT) * laps
    return jax.lax.scan(step, start, jnp.arange(steps))[1]
