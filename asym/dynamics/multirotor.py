"""Physics of a multirotor with four rotors, at three levels of detail.

`rigid_body_derivative` takes rotor speeds as they are commanded (13 numbers of state),
`quadrotor_derivative` delays them (17), and a constant force and torque may disturb either.  All
quantities are in SI units but rotor speeds, which are in revolutions per minute.

Reference:
    Eschmann, Albani and Loianno, "Learning to Fly in Seconds", RA-L 2024, arXiv 2311.13081; the
    numbers are those of the authors' code.
"""

from typing import NamedTuple

import jax.numpy as jnp

from asym.dynamics.integrators import Time, rk4_step
from asym.dynamics.vectors import (
    Component,
    Quaternion,
    Vector,
    cross,
    quat_derivative,
    quat_normalize,
    rotated_up,
)


class Rotors(NamedTuple):
    """One number a rotor, in the order of the vehicle's rotor positions."""

    first: Component
    second: Component
    third: Component
    fourth: Component


class RigidBody(NamedTuple):
    """State of 13 numbers.

    Attributes:
        position: in m, in the world's frame.
        orientation: from the body to the world.
        velocity: in m/s, in the world's frame.
        angular_velocity: in rad/s, in the BODY's frame.
    """

    position: Vector
    orientation: Quaternion
    velocity: Vector
    angular_velocity: Vector


class Quadrotor(NamedTuple):
    """State of 17 numbers: the body and its rotor speeds in rpm."""

    body: RigidBody
    rpm: Rotors


class Disturbance(NamedTuple):
    """What pushes the vehicle.

    Attributes:
        force: in N, in the world's frame.
        torque: in N m, in the body's frame.
    """

    force: Vector
    torque: Vector


class Vehicle(NamedTuple):
    """Constants of a vehicle.

    Attributes:
        mass: in kg.
        inertia: diagonal of the inertia tensor in kg m^2.
        rotor_positions: (x, y) of each rotor in m; all push along the body's z axis.
        rotor_directions: sign of the torque that each rotor causes about z, +1 or -1.
        thrust_curve: thrust in N is ``c0 + c1 rpm + c2 rpm^2``.
        torque_constant: torque about z for a unit of thrust, in m.
        motor_time_constant: of the rotor speed, in s.
        max_rpm: largest rotor speed; the smallest is 0.
        gravity: acceleration along the world's z axis in m/s^2.
    """

    mass: float
    inertia: Vector
    rotor_positions: tuple[tuple[float, float], ...]
    rotor_directions: tuple[float, ...]
    thrust_curve: tuple[float, float, float]
    torque_constant: float
    motor_time_constant: float
    max_rpm: float
    gravity: float


CRAZYFLIE = Vehicle(
    mass=0.027,
    inertia=Vector(3.85e-6, 3.85e-6, 5.9675e-6),
    rotor_positions=((0.028, -0.028), (-0.028, -0.028), (-0.028, 0.028), (0.028, 0.028)),
    rotor_directions=(-1.0, 1.0, -1.0, 1.0),
    thrust_curve=(0.0, 0.0, 3.16e-10),
    torque_constant=0.005964552,
    motor_time_constant=0.15,
    max_rpm=21702.0,
    gravity=-9.81,
)

UNDISTURBED = Disturbance(Vector(0.0, 0.0, 0.0), Vector(0.0, 0.0, 0.0))


def rotor_speeds(action: Rotors, vehicle: Vehicle = CRAZYFLIE) -> Rotors:
    """Rotor speeds of normalised actions, ``(clip(a, -1, 1) + 1) / 2 max_rpm``.

    Args:
        action: set-points; -1 stands still, 1 is the largest speed.
        vehicle: its constants.

    Returns:
        Set-points in rpm.

    Reference:
        arXiv 2311.13081, authors' code.
    """
    return Rotors(*((jnp.clip(a, -1.0, 1.0) + 1.0) / 2.0 * vehicle.max_rpm for a in action))


def normalized_speeds(rpm: Rotors, vehicle: Vehicle = CRAZYFLIE) -> Rotors:
    """Actions that command the given speeds, ``rpm / max_rpm * 2 - 1``.

    Args:
        rpm: rotor speeds in rpm.
        vehicle: its constants.

    Returns:
        Numbers in [-1, 1] for speeds in [0, max_rpm].
    """
    return Rotors(*(speed / vehicle.max_rpm * 2.0 - 1.0 for speed in rpm))


def hover_speed(vehicle: Vehicle = CRAZYFLIE) -> float:
    """Speed at which four equal rotors carry the vehicle: the root of ``4 T(rpm) = -m g``.

    Args:
        vehicle: its constants, as Python numbers.

    Returns:
        Speed in rpm.
    """
    c0, c1, c2 = vehicle.thrust_curve
    missing = c0 + vehicle.mass * vehicle.gravity / 4
    return float((-c1 + (c1 * c1 - 4 * c2 * missing) ** 0.5) / (2 * c2))


def rotor_wrench(rpm: Rotors, vehicle: Vehicle = CRAZYFLIE) -> tuple[Component, Vector]:
    """Thrust and torque of the rotors.

    ``T_i = c0 + c1 rpm_i + c2 rpm_i^2`` along z, and
    ``M = sum_i [r_i x (0, 0, T_i) + k s_i (0, 0, T_i)]``.

    Args:
        rpm: rotor speeds in rpm.
        vehicle: its constants.

    Returns:
        The summed thrust in N along the body's z axis, and the torque in N m in the body's frame.

    Reference:
        arXiv 2311.13081, authors' code.
    """
    c0, c1, c2 = vehicle.thrust_curve
    thrusts = [c0 + (c1 + c2 * speed) * speed for speed in rpm]
    positions, directions = vehicle.rotor_positions, vehicle.rotor_directions
    about_x = sum(y * t for (_, y), t in zip(positions, thrusts, strict=True))
    about_y = sum(-x * t for (x, _), t in zip(positions, thrusts, strict=True))
    about_z = sum(vehicle.torque_constant * s * t for s, t in zip(directions, thrusts, strict=True))
    return sum(thrusts), Vector(about_x, about_y, about_z)


def rigid_body_derivative(
    body: RigidBody,
    *,
    rpm: Rotors,
    disturbance: Disturbance = UNDISTURBED,
    vehicle: Vehicle = CRAZYFLIE,
) -> RigidBody:
    """Derivative of the 13 numbers, with rotors at the given speeds.

    ``dp = v``, ``dq = 1/2 q (x) (0, omega)``, ``dv = R(q)(0, 0, T)/m + (0, 0, g) + f/m`` and
    ``domega = J^-1 (M - omega x J omega + tau)``.

    Args:
        body: the state.
        rpm: rotor speeds in rpm.
        disturbance: constant force and torque.
        vehicle: its constants.

    Returns:
        The derivative by the second.

    Reference:
        arXiv 2311.13081, section III and authors' code.
    """
    thrust, torque = rotor_wrench(rpm, vehicle)
    lift = rotated_up(body.orientation, thrust)
    force, push = disturbance.force, disturbance.torque
    spin, inertia = body.angular_velocity, vehicle.inertia
    momentum = Vector(inertia.x * spin.x, inertia.y * spin.y, inertia.z * spin.z)
    gyroscopic = cross(spin, momentum)
    per_mass = 1.0 / vehicle.mass
    return RigidBody(
        position=body.velocity,
        orientation=quat_derivative(body.orientation, spin),
        velocity=Vector(
            (lift.x + force.x) * per_mass,
            (lift.y + force.y) * per_mass,
            (lift.z + force.z) * per_mass + vehicle.gravity,
        ),
        angular_velocity=Vector(
            (torque.x - gyroscopic.x + push.x) * (1.0 / inertia.x),
            (torque.y - gyroscopic.y + push.y) * (1.0 / inertia.y),
            (torque.z - gyroscopic.z + push.z) * (1.0 / inertia.z),
        ),
    )


def quadrotor_derivative(
    state: Quadrotor,
    *,
    rpm_setpoint: Rotors,
    disturbance: Disturbance = UNDISTURBED,
    vehicle: Vehicle = CRAZYFLIE,
) -> Quadrotor:
    """Derivative of the 17 numbers: rotors follow their set-points with a delay.

    ``drpm_i = (setpoint_i - rpm_i) / tau``; the body feels the speeds, not the set-points.

    Args:
        state: the state.
        rpm_setpoint: commanded speeds in rpm.
        disturbance: constant force and torque.
        vehicle: its constants.

    Returns:
        The derivative by the second.

    Reference:
        arXiv 2311.13081, section III and authors' code.
    """
    rate = 1.0 / vehicle.motor_time_constant
    return Quadrotor(
        rigid_body_derivative(state.body, rpm=state.rpm, disturbance=disturbance, vehicle=vehicle),
        Rotors(
            *((goal - speed) * rate for goal, speed in zip(rpm_setpoint, state.rpm, strict=True))
        ),
    )


def rigid_body_step(
    body: RigidBody,
    *,
    rpm: Rotors,
    disturbance: Disturbance = UNDISTURBED,
    dt: Time = 0.01,
    vehicle: Vehicle = CRAZYFLIE,
) -> RigidBody:
    """One Runge-Kutta step of the 13 numbers, without normalisation: the authors' speed test.

    Args:
        body: the state.
        rpm: rotor speeds in rpm, constant during the step.
        disturbance: constant force and torque.
        dt: step in s.
        vehicle: its constants.

    Returns:
        The state after the step.

    Reference:
        arXiv 2311.13081, authors' benchmark.
    """
    return rk4_step(
        lambda state: rigid_body_derivative(
            state, rpm=rpm, disturbance=disturbance, vehicle=vehicle
        ),
        body,
        dt,
    )


def quadrotor_step(
    state: Quadrotor,
    *,
    action: Rotors,
    disturbance: Disturbance = UNDISTURBED,
    dt: Time = 0.01,
    vehicle: Vehicle = CRAZYFLIE,
) -> Quadrotor:
    """One step of the environment: Runge-Kutta, then a unit quaternion and speeds in range.

    Args:
        state: the state.
        action: normalised set-points, clipped to [-1, 1].
        disturbance: constant force and torque.
        dt: step in s.
        vehicle: its constants.

    Returns:
        The state after the step.

    Reference:
        arXiv 2311.13081, authors' code.
    """
    setpoint = rotor_speeds(action, vehicle)
    moved = rk4_step(
        lambda now: quadrotor_derivative(
            now, rpm_setpoint=setpoint, disturbance=disturbance, vehicle=vehicle
        ),
        state,
        dt,
    )
    return Quadrotor(
        moved.body._replace(orientation=quat_normalize(moved.body.orientation)),
        Rotors(*(jnp.clip(speed, 0.0, vehicle.max_rpm) for speed in moved.rpm)),
    )
