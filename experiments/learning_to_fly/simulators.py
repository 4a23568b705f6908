"""Ways to compute one step of the same vehicle."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from asym import dynamics

RK4_SOA, RK4_AOS, EULER, MJX = "rk4_soa", "rk4_aos", "euler", "mjx"
SIMULATORS = (RK4_SOA, RK4_AOS, EULER, MJX)


def step(
    vehicle: dynamics.Quadrotor,
    *,
    action: dynamics.Rotors,
    disturbance: dynamics.Disturbance,
    simulator: str,
    rotor_delay: bool,
    dt: float,
) -> dynamics.Quadrotor:
    """One step of the environment's physics.

    Args:
      vehicle: State of each vehicle.
      action: Normalised set-points.
      disturbance: What pushes.
      simulator: rk4_soa (components), rk4_aos (one array of states), euler (first order) or mjx
        (MuJoCo's twin of the body).
      rotor_delay: Whether rotors need time; without, their speed is the set-point at once.
      dt: Step in s.

    Returns:
      The state after it, with a unit quaternion and rotor speeds in range.
    """
    setpoint = dynamics.rotor_speeds(action)
    if simulator == RK4_AOS:
        return _step_of_arrays(vehicle, setpoint, disturbance, rotor_delay, dt)
    if simulator == MJX:
        # Whoever trains without MuJoCo need not load it.
        from experiments.learning_to_fly import twin

        after, during = setpoint, setpoint
        if rotor_delay:
            moved = dynamics.quadrotor_step(vehicle, action=action, disturbance=disturbance, dt=dt)
            # The twin's rotors turn at one speed during a step: the mean of before and after.
            after = moved.rpm
            during = jax.tree.map(lambda a, b: (a + b) / 2, vehicle.rpm, after)
        body = twin.step(vehicle.body, rpm=during, disturbance=disturbance, dt=dt)
        return _in_range(dynamics.Quadrotor(body, after))
    if rotor_delay and simulator == RK4_SOA:
        return dynamics.quadrotor_step(vehicle, action=action, disturbance=disturbance, dt=dt)
    advance = dynamics.euler_step if simulator == EULER else dynamics.rk4_step
    if rotor_delay:
        moved = advance(
            lambda now: dynamics.quadrotor_derivative(
                now, rpm_setpoint=setpoint, disturbance=disturbance
            ),
            vehicle,
            dt,
        )
        return _in_range(moved)
    body = advance(
        lambda now: dynamics.rigid_body_derivative(now, rpm=setpoint, disturbance=disturbance),
        vehicle.body,
        dt,
    )
    return _in_range(dynamics.Quadrotor(body, setpoint))


def _in_range(vehicle: dynamics.Quadrotor) -> dynamics.Quadrotor:
    body = vehicle.body
    unit = dynamics.quat_normalize(body.orientation)
    largest = dynamics.CRAZYFLIE.max_rpm
    speeds = dynamics.Rotors(*(jnp.clip(speed, 0.0, largest) for speed in vehicle.rpm))
    return dynamics.Quadrotor(body._replace(orientation=unit), speeds)


def _step_of_arrays(
    vehicle: dynamics.Quadrotor,
    setpoint: dynamics.Rotors,
    disturbance: dynamics.Disturbance,
    rotor_delay: bool,
    dt: float,
) -> dynamics.Quadrotor:
    """Runge-Kutta on one array whose last axis counts the components."""
    like: Any = vehicle if rotor_delay else vehicle.body

    def field(state: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        now = dynamics.unpack(state, like=like)
        if rotor_delay:
            return dynamics.pack(
                dynamics.quadrotor_derivative(now, rpm_setpoint=setpoint, disturbance=disturbance)
            )
        return dynamics.pack(
            dynamics.rigid_body_derivative(now, rpm=setpoint, disturbance=disturbance)
        )

    moved = dynamics.unpack(dynamics.rk4_step(field, dynamics.pack(like), dt), like=like)
    return _in_range(moved if rotor_delay else dynamics.Quadrotor(moved, setpoint))
