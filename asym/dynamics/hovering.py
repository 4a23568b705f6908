"""The task of hovering at the origin: reward, termination, what actor and critic see, beginnings.

The actor sees what a real vehicle can measure, with noise, and its own last actions; the critic
sees in addition, and without noise, what it cannot measure: rotor speeds and disturbance.

Reference:
    Eschmann, Albani and Loianno, "Learning to Fly in Seconds", RA-L 2024, arXiv 2311.13081; the
    numbers are those of the authors' code.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from asym.control.td3 import geometric_curriculum
from asym.dynamics.integrators import Time
from asym.dynamics.multirotor import (
    CRAZYFLIE,
    Disturbance,
    Quadrotor,
    RigidBody,
    Rotors,
    Vehicle,
    normalized_speeds,
)
from asym.dynamics.vectors import (
    Component,
    Quaternion,
    Vector,
    pack,
    quat_to_matrix,
    squared_norm,
)

# The authors' number for a right angle; the largest tilt at the beginning of an episode.
RIGHT_ANGLE = 90 / 180 * 3.14
# The authors' rounded action of a hovering Crazyflie, from which the reward counts.
HOVER_ACTION = 0.334
# Enough for float64: from the first guess, Newton's method doubles the digits each time.
_NEWTON_STEPS = 6


class RewardWeights(NamedTuple):
    """Weights of the squared errors, and what a step is worth without any.

    Attributes:
        position: of ``|p|^2`` in m^2.
        orientation: of ``1 - w^2``.
        velocity: of ``|v|^2`` in m^2/s^2.
        angular_velocity: of ``|omega|^2`` in 1/s^2.
        linear_acceleration: of ``|dv/dt|^2`` in m^2/s^4.
        angular_acceleration: of ``|domega/dt|^2`` in 1/s^4.
        action: of the squared distance to the hovering action.
        scale: of the weighted sum.
        survival: worth of a step that does not end the episode.
    """

    position: Component = 5.0
    orientation: Component = 5.0
    velocity: Component = 0.01
    angular_velocity: Component = 0.0
    linear_acceleration: Component = 0.0
    angular_acceleration: Component = 0.0
    action: Component = 0.01
    scale: Component = 0.5
    survival: Component = 2.0


INITIAL_WEIGHTS = RewardWeights()
TARGET_WEIGHTS = RewardWeights(position=40.0, velocity=1.0, action=1.0)


# Growth and largest value of the weights that the curriculum raises.
_CURRICULUM = {"position": (1.2, 40.0), "velocity": (1.4, 1.0), "action": (1.4, 1.0)}


class RewardCosts(NamedTuple):
    """The squared errors of a step, before their weights; see `RewardWeights`."""

    position: Component
    orientation: Component
    velocity: Component
    angular_velocity: Component
    linear_acceleration: Component
    angular_acceleration: Component
    action: Component


class ObservationNoise(NamedTuple):
    """Standard deviations of what the actor sees.

    Attributes:
        position: in m.
        rotation: of each entry of the rotation matrix.
        velocity: in m/s.
        angular_velocity: in rad/s.
    """

    position: float = 0.001
    rotation: float = 0.001
    velocity: float = 0.002
    angular_velocity: float = 0.002


class InitialStates(NamedTuple):
    """The law of the first state of an episode.

    Attributes:
        guidance: probability of a beginning at the origin, upright.
        max_position: largest coordinate in m.
        max_angle: largest tilt in rad.
        max_velocity: largest component in m/s.
        max_angular_velocity: largest component in rad/s.
        force_std: of each component of the disturbing force, in N.
        torque_std: of each component of the disturbing torque, in N m.
    """

    guidance: float = 0.1
    max_position: float = 0.2
    max_angle: float = RIGHT_ANGLE
    max_velocity: float = 1.0
    max_angular_velocity: float = 1.0
    force_std: float = 0.027 * 9.81 / 20
    torque_std: float = 0.027 * 9.81 / 10000


OBSERVATION_NOISE = ObservationNoise()
INITIAL_STATES = InitialStates()


def terminated(
    body: RigidBody,
    *,
    max_position: float = 0.6,
    max_velocity: float = 1000.0,
    max_angular_velocity: float = 1000.0,
) -> Bool[Array, "*batch"]:
    """Whether any coordinate has left its range (strictly).

    Args:
        body: the state after a step.
        max_position: largest coordinate in m.
        max_velocity: largest component in m/s.
        max_angular_velocity: largest component in rad/s.

    Returns:
        True where the episode is over by failure.

    Reference:
        arXiv 2311.13081, authors' code.
    """
    outside = [
        jnp.abs(component) > limit
        for vector, limit in (
            (body.position, max_position),
            (body.velocity, max_velocity),
            (body.angular_velocity, max_angular_velocity),
        )
        for component in vector
    ]
    return jnp.any(jnp.stack(outside), axis=0)


def reward_costs(
    body: RigidBody, *, action: Rotors, next_body: RigidBody, dt: Time = 0.01
) -> RewardCosts:
    """The squared errors of a step; all but the accelerations are of the state BEFORE it.

    Args:
        body: state before the step.
        action: as the actor gave it, not clipped.
        next_body: state after the step, for the accelerations only.
        dt: step in s.

    Returns:
        The errors.

    Reference:
        arXiv 2311.13081, section III-C and authors' code.
    """

    def change(after: Vector, before: Vector) -> Component:
        rate = Vector(*((a - b) / dt for a, b in zip(after, before, strict=True)))
        return squared_norm(rate)

    return RewardCosts(
        position=squared_norm(body.position),
        # The square makes q and -q, which are one orientation, equal.
        orientation=1.0 - body.orientation.w**2,
        velocity=squared_norm(body.velocity),
        angular_velocity=squared_norm(body.angular_velocity),
        linear_acceleration=change(next_body.velocity, body.velocity),
        angular_acceleration=change(next_body.angular_velocity, body.angular_velocity),
        action=sum((a - HOVER_ACTION) ** 2 for a in action),
    )


def weighted_costs(costs: RewardCosts, weights: RewardWeights) -> Component:
    """``sum_k C_k cost_k``, the bracket of `quadrotor_reward`.

    Args:
        costs: the squared errors.
        weights: their weights.

    Returns:
        The weighted sum, not negative for weights that are not.
    """
    total = 0.0
    for name, cost in costs._asdict().items():
        weight = getattr(weights, name)
        # A weight that is the number 0 spares its cost, and with it the risk of 0 * inf.
        if not (isinstance(weight, float | int) and weight == 0):
            total = total + weight * cost
    return total


def next_weights(weights: RewardWeights) -> RewardWeights:
    """Weights after one stage of the curriculum: costs grow by a factor up to their target.

    ``C_p <- min(1.2 C_p, 40)``, ``C_v <- min(1.4 C_v, 1)`` and ``C_a <- min(1.4 C_a, 1)``.

    Args:
        weights: those of the stage before.

    Returns:
        The next ones; rewards stored before must be computed anew from them.

    Reference:
        arXiv 2311.13081, section III-E; the paper raises all weights, the authors' code (followed
        here) these three.
    """
    return weights._replace(
        **{
            name: geometric_curriculum(getattr(weights, name), factor=factor, cap=cap)
            for name, (factor, cap) in _CURRICULUM.items()
        }
    )


def quadrotor_reward(
    body: RigidBody,
    *,
    action: Rotors,
    next_body: RigidBody,
    weights: RewardWeights = INITIAL_WEIGHTS,
    dt: Time = 0.01,
) -> Float[Array, "*batch"]:
    """Reward of a step: ``survival - scale sum_k C_k cost_k``, or 0 where the episode fails.

    Args:
        body: state before the step.
        action: as the actor gave it, not clipped.
        next_body: state after the step.
        weights: of the costs.
        dt: step in s.

    Returns:
        The reward, which may be negative.

    Reference:
        arXiv 2311.13081, section III-C; the paper writes weights that contain the scale, the
        authors' code (followed here) multiplies the sum by it.
    """
    costs = reward_costs(body, action=action, next_body=next_body, dt=dt)
    reward = weights.survival - weights.scale * weighted_costs(costs, weights)
    return jnp.where(terminated(next_body), 0.0, reward)


def observe_actor(
    body: RigidBody,
    *,
    history: Float[Array, "*batch steps 4"],
    draws: Float[Array, "*batch 18"] | None = None,
    noise: ObservationNoise = OBSERVATION_NOISE,
) -> Float[Array, "*batch size"]:
    """What the actor sees: noisy pose and velocities, and its last actions.

    Position, rotation matrix row by row, velocity, angular velocity, and the actions, oldest
    first.

    Args:
        body: the state.
        history: the last actions, oldest first.
        draws: standard normal numbers, one for each number that is sensed; without, no noise.
        noise: standard deviations by which they are multiplied.

    Returns:
        18 numbers and 4 for each action remembered.

    Reference:
        arXiv 2311.13081, section III-B and authors' code.
    """
    seen = pack(
        (body.position, quat_to_matrix(body.orientation), body.velocity, body.angular_velocity)
    )
    if draws is not None:
        chex.assert_equal_shape([seen, draws])
        spread = [noise.position] * 3 + [noise.rotation] * 9
        spread += [noise.velocity] * 3 + [noise.angular_velocity] * 3
        seen = seen + jnp.asarray(spread, seen.dtype) * draws
    chex.assert_shape(history, (*seen.shape[:-1], None, 4))
    return jnp.concatenate([seen, history.reshape(*seen.shape[:-1], -1)], axis=-1)


def observe_critic(
    state: Quadrotor, *, disturbance: Disturbance, vehicle: Vehicle = CRAZYFLIE
) -> Float[Array, "*batch 28"]:
    """What the critic sees: everything but the history, and without noise.

    Position, rotation matrix row by row, velocity, angular velocity, disturbing force and torque,
    and rotor speeds in [-1, 1].

    Args:
        state: the state.
        disturbance: constant force and torque of the episode.
        vehicle: its constants.

    Returns:
        28 numbers.

    Reference:
        arXiv 2311.13081, section III-B and authors' code.
    """
    body = state.body
    return pack(
        (
            body.position,
            quat_to_matrix(body.orientation),
            body.velocity,
            body.angular_velocity,
            disturbance,
            normalized_speeds(state.rpm, vehicle),
        )
    )


def push_history(
    history: Float[Array, "*batch steps 4"], action: Float[Array, "*batch 4"]
) -> Float[Array, "*batch steps 4"]:
    """Forgets the oldest action and appends the newest.

    Args:
        history: the last actions, oldest first.
        action: the newest one, as the actor gave it.

    Returns:
        The history after the step.
    """
    return jnp.concatenate([history[..., 1:, :], action[..., None, :]], axis=-2)


def _limited_angle(fraction: Float[Array, "*batch"], largest: float) -> Float[Array, "*batch"]:
    """Inverse of the distribution of a random rotation's angle, up to ``largest``.

    The density is in proportion to ``1 - cos``, so the angle solves
    ``angle - sin(angle) = fraction (largest - sin(largest))``.
    """
    goal = fraction * (largest - math.sin(largest))
    # Third-order expansion at 0; it lies below the root, where the function is convex.
    angle = jnp.cbrt(6.0 * goal)
    for _ in range(_NEWTON_STEPS):
        slope = 1.0 - jnp.cos(angle)
        flat = slope <= 0.0
        step = (angle - jnp.sin(angle) - goal) / jnp.where(flat, 1.0, slope)
        angle = angle - jnp.where(flat, 0.0, step)
    return jnp.clip(angle, 0.0, largest)


def sample_orientation(
    key: PRNGKeyArray, *, max_angle: float = RIGHT_ANGLE, shape: tuple[int, ...] = ()
) -> Quaternion:
    """A random rotation by at most an angle: uniform on SO(3), given that it is not larger.

    The authors draw uniform rotations until one is small enough; this has the same law without
    rejection.

    Args:
        key: of the draw.
        max_angle: in rad, in (0, pi].
        shape: of the batch.

    Returns:
        Unit quaternions with ``w >= 0``.

    Reference:
        arXiv 2311.13081, authors' code.
    """
    angle_key, axis_key = jax.random.split(key)
    angle = _limited_angle(jax.random.uniform(angle_key, shape), max_angle)
    direction = jax.random.normal(axis_key, (3, *shape))
    sine = jnp.sin(angle / 2) / jnp.sqrt(jnp.sum(direction**2, axis=0))
    return Quaternion(jnp.cos(angle / 2), *(sine * component for component in direction))


def sample_initial_state(
    key: PRNGKeyArray,
    *,
    law: InitialStates = INITIAL_STATES,
    vehicle: Vehicle = CRAZYFLIE,
    shape: tuple[int, ...] = (),
) -> tuple[Quadrotor, Disturbance]:
    """The first state of an episode, and the disturbance that lasts for all of it.

    Args:
        key: of the draws.
        law: their distribution.
        vehicle: its constants.
        shape: of the batch.

    Returns:
        The state, with rotors at half their largest speed, and the disturbance.

    Reference:
        arXiv 2311.13081, section III-D and authors' code.
    """
    keys = jax.random.split(key, 5)
    guided = jax.random.bernoulli(keys[0], law.guidance, shape)
    orientation = sample_orientation(keys[1], max_angle=law.max_angle, shape=shape)
    ranges = (law.max_position, law.max_velocity, law.max_angular_velocity)
    position, velocity, spin = (
        Vector(*(limit * draw))
        for limit, draw in zip(
            ranges, jax.random.uniform(keys[2], (3, 3, *shape), minval=-1.0), strict=True
        )
    )
    upright = Quaternion(1.0, 0.0, 0.0, 0.0)
    body = RigidBody(
        position=Vector(*(jnp.where(guided, 0.0, p) for p in position)),
        orientation=Quaternion(
            *(jnp.where(guided, one, q) for one, q in zip(upright, orientation, strict=True))
        ),
        velocity=velocity,
        angular_velocity=spin,
    )
    rpm = jnp.full(shape, vehicle.max_rpm / 2)
    disturbance = Disturbance(
        force=Vector(*(law.force_std * jax.random.normal(keys[3], (3, *shape)))),
        torque=Vector(*(law.torque_std * jax.random.normal(keys[4], (3, *shape)))),
    )
    return Quadrotor(body, Rotors(rpm, rpm, rpm, rpm)), disturbance
