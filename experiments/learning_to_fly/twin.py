"""The same vehicle in MuJoCo: an independent check of the physics, and a comparison of speed."""

import contextlib
import functools
import io
from typing import Any

import jax
import jax.numpy as jnp

from asym import dynamics

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    # It prints two lines about an optional backend that is absent.
    import mujoco
    from mujoco import mjx


def mjcf(vehicle: dynamics.Vehicle = dynamics.CRAZYFLIE, *, dt: float = 0.01) -> str:
    """The vehicle as a MuJoCo model: a free body with four motors that push and twist.

    Args:
      vehicle: Its constants.
      dt: Step in s.

    Returns:
      XML. The controls are the thrusts of the rotors in N.
    """
    sites, motors = [], []
    for i, ((x, y), turn) in enumerate(
        zip(vehicle.rotor_positions, vehicle.rotor_directions, strict=True)
    ):
        sites.append(f'<site name="rotor{i}" pos="{x} {y} 0"/>')
        gear = f"0 0 1 0 0 {turn * vehicle.torque_constant!r}"
        motors.append(f'<motor site="rotor{i}" gear="{gear}"/>')
    inertia = " ".join(repr(value) for value in vehicle.inertia)
    return f"""<mujoco>
  <option timestep="{dt!r}" integrator="RK4" gravity="0 0 {vehicle.gravity!r}">
    <flag contact="disable"/>
  </option>
  <worldbody>
    <body name="quadrotor">
      <freejoint/>
      <inertial pos="0 0 0" mass="{vehicle.mass!r}" diaginertia="{inertia}"/>
      {"".join(sites)}
    </body>
  </worldbody>
  <actuator>{"".join(motors)}</actuator>
</mujoco>"""


@functools.cache
def _model(dt: float, precision: str) -> tuple[Any, Any]:
    # Concrete arrays, although the first call may come from a trace.
    with jax.ensure_compile_time_eval():
        model = mjx.put_model(mujoco.MjModel.from_xml_string(mjcf(dt=dt)))
        return model, mjx.make_data(model)


def step(
    body: dynamics.RigidBody,
    *,
    rpm: dynamics.Rotors,
    disturbance: dynamics.Disturbance = dynamics.UNDISTURBED,
    dt: float = 0.01,
) -> dynamics.RigidBody:
    """One step of the 13 numbers by MuJoCo's Runge-Kutta, which normalises the quaternion.

    Args:
      body: State of each vehicle.
      rpm: Rotor speeds.
      disturbance: What pushes; the torque keeps its direction in the world during the step.
      dt: Step in s.

    Returns:
      The state after it.
    """
    model, blank = _model(dt, str(jax.dtypes.canonicalize_dtype(float)))
    c0, c1, c2 = dynamics.CRAZYFLIE.thrust_curve
    shape = jnp.broadcast_shapes(*(jnp.shape(x) for x in jax.tree.leaves((body, rpm))))
    full = functools.partial(jnp.broadcast_to, shape=shape)
    torque = dynamics.quat_rotate(body.orientation, disturbance.torque)
    parts = (
        dynamics.pack(jax.tree.map(full, (body.position, body.orientation))),
        dynamics.pack(jax.tree.map(full, (body.velocity, body.angular_velocity))),
        dynamics.pack(jax.tree.map(lambda s: full(c0 + (c1 + c2 * s) * s), rpm)),
        dynamics.pack(jax.tree.map(full, (disturbance.force, torque))),
    )

    def one(pose: jax.Array, speed: jax.Array, thrust: jax.Array, push: jax.Array) -> Any:
        pushes = jnp.zeros_like(blank.xfrc_applied).at[-1].set(push)
        data = blank.replace(qpos=pose, qvel=speed, ctrl=thrust, xfrc_applied=pushes)
        after = mjx.step(model, data)
        return jnp.concatenate([after.qpos, after.qvel])

    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    after = jax.vmap(one)(*flat).reshape(*shape, -1)
    return dynamics.unpack(after, like=body)
