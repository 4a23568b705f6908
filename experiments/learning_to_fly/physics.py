"""Closed forms of the physics, and the comparison with MuJoCo.

`python -m experiments.learning_to_fly.physics` prints the comparison: it has a process of its own,
because the compiler option that makes training fast ends the compilation of MuJoCo's program with
a crash.
"""

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asym import control, dynamics
from experiments.common import report
from experiments.common.errors import UserError
from experiments.learning_to_fly import flight, twin

_VEHICLES = 64
# Rotor speeds around hovering, so that the vehicles tumble gently.
_SPREAD = 2e-3


def _floating() -> tuple[dynamics.Quadrotor, dynamics.Disturbance]:
    """Random states in the precision in force."""
    drawn = dynamics.sample_initial_state(jax.random.key(0), shape=(_VEHICLES,))
    vehicle, disturbance = jax.tree.map(lambda x: jnp.asarray(x, float), drawn)
    body = vehicle.body
    unit = dynamics.quat_normalize(body.orientation)
    return vehicle._replace(body=body._replace(orientation=unit)), disturbance


def largest_difference(a: Any, b: Any) -> float:
    """Largest deviation between two pytrees of one structure.

    Args:
      a: A pytree of arrays.
      b: Another one.

    Returns:
      The deviation.
    """
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def free_fall(dt: float = 0.01, steps: int = 100) -> float:
    """Deviation from ``p + v t - g t^2/2`` without thrust, in float64.

    Args:
      dt: Step in s.
      steps: How many.

    Returns:
      The largest deviation in m.
    """
    with jax.enable_x64(True):
        start = _floating()[0].body
        stopped = dynamics.Rotors(0.0, 0.0, 0.0, 0.0)
        step = jax.jit(lambda now: dynamics.rigid_body_step(now, rpm=stopped, dt=dt))
        body = start
        for _ in range(steps):
            body = step(body)
        time = dt * steps
        fallen = dynamics.CRAZYFLIE.gravity * time**2 / 2
        expected = dynamics.Vector(
            *(
                p + v * time + g
                for p, v, g in zip(start.position, start.velocity, (0.0, 0.0, fallen), strict=True)
            )
        )
        return largest_difference(body.position, expected)


def motor_delay() -> float:
    """Deviation of a step's factor on the error of rotor speeds from the closed form.

    Runge-Kutta of order four on ``x' = -x/tau`` shrinks x by
    ``1 - h + h^2/2 - h^3/6 + h^4/24`` with ``h = dt/tau``.

    Returns:
      The largest deviation relative to the factor.
    """
    with jax.enable_x64(True):
        vehicle, disturbance = _floating()
        goal = 0.2
        setpoint = dynamics.rotor_speeds(dynamics.Rotors(*4 * [jnp.asarray(goal)])).first
        after = jax.jit(
            lambda now: dynamics.quadrotor_step(
                now,
                action=dynamics.Rotors(*4 * [jnp.full(_VEHICLES, goal)]),
                disturbance=disturbance,
            )
        )(vehicle)
        h = flight.DT / dynamics.CRAZYFLIE.motor_time_constant
        factor = 1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24
        found = (after.rpm.first - setpoint) / (vehicle.rpm.first - setpoint)
        return float(np.abs(np.asarray(found) / factor - 1).max())


def hovering() -> float:
    """Acceleration of an upright vehicle whose rotors turn at `hover_speed`, in m/s^2."""
    body = _floating()[0].body
    zeros = jnp.zeros(_VEHICLES)
    upright = dynamics.Quaternion(jnp.ones(_VEHICLES), zeros, zeros, zeros)
    speed = dynamics.hover_speed()
    rpm = dynamics.Rotors(*4 * [jnp.full(_VEHICLES, speed)])
    change = dynamics.rigid_body_derivative(body._replace(orientation=upright), rpm=rpm)
    return largest_difference(change.velocity, dynamics.Vector(zeros, zeros, zeros))


def unit_length(*, double: bool, steps: int = 500) -> float:
    """Largest deviation of a quaternion's length from 1 over an episode of random actions.

    Args:
      double: In float64 instead of float32.
      steps: How many.

    Returns:
      The deviation.
    """
    with jax.enable_x64(double):
        vehicle, disturbance = _floating()

        def one(now: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            action = jax.random.uniform(key, (_VEHICLES, 4), float, -1.0, 1.0)
            after = dynamics.quadrotor_step(
                now, action=flight.rotors(action), disturbance=disturbance
            )
            length = jnp.sqrt(sum(part**2 for part in after.body.orientation))
            return after, jnp.max(jnp.abs(length - 1))

        keys = jax.random.split(jax.random.key(1), steps)
        return float(jax.jit(lambda v: jax.lax.scan(one, v, keys)[1])(vehicle).max())


def fast_tangent() -> float:
    """Largest deviation of the derivative of the fast tangent from ``1 - y^2``."""
    with jax.enable_x64(True):
        x = jnp.linspace(-5, 5, 2001)
        slope = jax.vmap(jax.grad(control.fast_tanh))(x)
        return float(jnp.abs(slope - (1 - control.fast_tanh(x) ** 2)).max())


def against_mujoco(dt: float = 0.01, seconds: float = 1.0) -> float:
    """Difference to MuJoCo's simulation of the same vehicle, in float64.

    Args:
      dt: Step in s.
      seconds: How long.

    Returns:
      The largest difference over all components (m, m/s, rad/s) at the end.
    """
    steps = round(seconds / dt)
    with jax.enable_x64(True):
        start = _floating()[0].body
        spread = 1 + _SPREAD * jax.random.normal(jax.random.key(1), (4, _VEHICLES))
        rpm = dynamics.Rotors(*(dynamics.hover_speed() * spread))

        def fly(advance: Any) -> dynamics.RigidBody:
            def one(_: jax.Array, now: dynamics.RigidBody) -> dynamics.RigidBody:
                return advance(now, rpm=rpm, dt=dt)

            return jax.jit(lambda body: jax.lax.fori_loop(0, steps, one, body))(start)

        ours, theirs = fly(dynamics.rigid_body_step), fly(twin.step)
        return largest_difference(ours, theirs)


def against_mujoco_elsewhere() -> tuple[float, float]:
    """`against_mujoco` with the usual step and with half of it, in a process of its own.

    Returns:
      Both differences.

    Raises:
      UserError: The process failed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.learning_to_fly.physics"],
        cwd=report.REPOSITORY,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        coarse, fine = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"the comparison with MuJoCo failed: {reason}") from error
    return float(coarse), float(fine)


if __name__ == "__main__":
    print(json.dumps([against_mujoco(flight.DT), against_mujoco(flight.DT / 2)]))
