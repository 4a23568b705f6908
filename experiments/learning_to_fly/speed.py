"""How many steps a second the simulator takes: the headline of the paper.

The batch is cut into chunks that stay in the processor's cache for all steps. A step is arithmetic
on components, which the compiler vectorises over the vehicles of a chunk.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asym import dynamics
from experiments.learning_to_fly import flight, simulators
from experiments.learning_to_fly.flight import ACTIONS, SENSED_SIZE

# Reported by the authors for a laptop GPU (NVIDIA T2000), and their count for the kernel.
PAPER_STEPS_PER_SECOND = 1.284e9
FLOPS_PER_STEP = 706
_HISTORY = 32
_SEEN = SENSED_SIZE + ACTIONS * _HISTORY + flight.CRITIC_SIZE
# The largest accelerations cannot end an episode in fewer steps: from 0.2 m at 1 m/s, with all
# thrust and gravity along one axis (32 m/s^2), 0.26 m are covered in 0.1 s, and 0.4 m are needed.
_ROUND = 10
_CHUNK = {"cpu": 512}
_LARGEST_CHUNK = 1 << 30
# Reassociation and the processor's widest vectors, as the authors' -ffast-math and -use_fast_math.
_OPTIONS = {"xla_cpu_enable_fast_math": True, "xla_cpu_prefer_vector_width": 512}


def months_per_second(steps_per_second: float) -> float:
    """Months of flight simulated in a second.

    Args:
      steps_per_second: Steps of 10 ms.

    Returns:
      Months of 30.44 days.
    """
    return steps_per_second * flight.DT / (86400 * 30.44)


class Air(NamedTuple):
    """Vehicles in a full training environment; arrays are (chunk,).

    Attributes:
      vehicle: State.
      disturbance: What pushes.
      ring: The last actions (32, 4, chunk); the oldest is overwritten.
      age: Steps since the beginning of the episode.
      total: Sum of the rewards, so that none of them is left out.
      seen: What the actor sees (146 rows) and the critic (28 rows); no rows without observations.
    """

    vehicle: dynamics.Quadrotor
    disturbance: dynamics.Disturbance
    ring: Float[Array, "steps 4 chunk"]
    age: Int[Array, " chunk"]
    total: Float[Array, " chunk"]
    seen: Float[Array, "size chunk"]


def chunk_of(batch: int, platform: str) -> int:
    """How many vehicles are advanced together.

    Args:
      batch: Vehicles in all.
      platform: Of the device.

    Returns:
      The largest divisor of the batch that suits the device.
    """
    largest = min(batch, _CHUNK.get(platform, _LARGEST_CHUNK))
    return next(size for size in range(largest, 0, -1) if batch % size == 0)


def _over_chunks(program: Callable[[Any], Any], chunk: int) -> Callable[[Any], Any]:
    """Runs a program on one chunk of the last axis after the other."""

    def run(tree: Any) -> Any:
        leading = jax.tree.map(lambda x: jnp.stack(jnp.split(x, x.shape[-1] // chunk, -1)), tree)
        done = jax.lax.map(program, leading)
        return jax.tree.map(lambda x: jnp.concatenate(list(x), axis=-1), done)

    def whole(tree: Any) -> Any:
        batch = jax.tree.leaves(tree)[0].shape[-1]
        return program(tree) if batch == chunk else run(tree)

    return whole


def kernel(
    *, batch: int, steps: int, simulator: str = simulators.RK4_SOA, platform: str = "cpu"
) -> tuple[Callable[[Any], Any], Any]:
    """The authors' speed test: 13 numbers, Runge-Kutta, rotors that stand still.

    No delay, history, noise, reward, termination, reset or normalisation (but mjx normalises).
    The compiler may compute the constant thrust once.

    Args:
      batch: Vehicles.
      steps: Of each vehicle in one call.
      simulator: How a step is computed.
      platform: Of the device.

    Returns:
      A compiled function of a state, and a state.
    """
    shape = (batch,)
    begun, _ = dynamics.sample_initial_state(jax.random.key(0), shape=shape)
    body = jax.tree.map(jnp.asarray, begun.body)
    rpm = dynamics.Rotors(*4 * [jnp.zeros(shape)])

    def advance(body: dynamics.RigidBody, rpm: dynamics.Rotors) -> dynamics.RigidBody:
        if simulator == simulators.RK4_SOA:
            return dynamics.rigid_body_step(body, rpm=rpm)
        if simulator == simulators.EULER:
            return dynamics.euler_step(
                lambda now: dynamics.rigid_body_derivative(now, rpm=rpm), body, flight.DT
            )
        if simulator == simulators.RK4_AOS:

            def field(state: jax.Array) -> jax.Array:
                now = dynamics.unpack(state, like=body)
                return dynamics.pack(dynamics.rigid_body_derivative(now, rpm=rpm))

            moved = dynamics.rk4_step(field, dynamics.pack(body), flight.DT)
            return dynamics.unpack(moved, like=body)
        from experiments.learning_to_fly import twin

        return twin.step(body, rpm=rpm)

    def fly(state: tuple[dynamics.RigidBody, dynamics.Rotors]) -> Any:
        body, rpm = state
        return jax.lax.fori_loop(0, steps, lambda _, now: advance(now, rpm), body), rpm

    # Arrays of states are only as fast as they are: MuJoCo and they take the batch at once.
    whole = simulator in (simulators.MJX, simulators.RK4_AOS)
    chunk = batch if whole else chunk_of(batch, platform)
    return _compiled(_over_chunks(fly, chunk)), _own((body, rpm))


def full_step(
    *, batch: int, steps: int, observe: bool = False, platform: str = "cpu"
) -> tuple[Callable[[Any], Any], Any]:
    """The training environment: 17 numbers, history, reward, termination, reset.

    Fresh states for the vehicles that fail are drawn every ten steps, for all vehicles: no episode
    can end twice in ten steps.

    Args:
      batch: Vehicles.
      steps: Of each vehicle in one call; a multiple of 10.
      observe: Whether actor and critic see each state, with fresh noise.
      platform: Of the device.

    Returns:
      A compiled function of a state, and a state.
    """
    shape = (batch,)
    vehicle, disturbance = jax.tree.map(
        jnp.asarray, dynamics.sample_initial_state(jax.random.key(0), shape=shape)
    )
    zeros = jnp.zeros(shape)
    air = Air(
        vehicle,
        disturbance,
        jnp.zeros((_HISTORY, ACTIONS, batch)),
        jnp.zeros(shape, jnp.int32),
        zeros,
        jnp.zeros((_SEEN if observe else 0, batch)),
    )
    action = jax.random.uniform(jax.random.key(1), (ACTIONS, batch), minval=0.2, maxval=0.5)
    seeds = jnp.arange(batch, dtype=jnp.uint32)

    def fly(state: tuple[Air, jax.Array, jax.Array]) -> Any:
        air, action, seeds = state
        key = jax.random.fold_in(jax.random.key(2), seeds[0])

        def one_round(index: jax.Array, air: Air) -> Air:
            round_key = jax.random.fold_in(key, index)
            fresh = dynamics.sample_initial_state(round_key, shape=seeds.shape)
            draws: Any = jnp.zeros(_ROUND)
            if observe:
                draws = jax.random.normal(round_key, (_ROUND, SENSED_SIZE, *seeds.shape))

            def one(i: jax.Array, air: Air) -> Air:
                at = index * _ROUND + i
                return _advance(air, action, fresh, at, draws[i] if observe else None)

            return jax.lax.fori_loop(0, _ROUND, one, air)

        air = jax.lax.fori_loop(0, steps // _ROUND, one_round, air)
        return air, action, seeds

    program = _compiled(_over_chunks(fly, chunk_of(batch, platform)))
    return program, _own((air, action, seeds))


def _advance(air: Air, action: jax.Array, fresh: Any, at: jax.Array, draws: Any) -> Air:
    """One step of the environment."""
    commands = dynamics.Rotors(*action)
    after = dynamics.quadrotor_step(
        air.vehicle, action=commands, disturbance=air.disturbance, dt=flight.DT
    )
    reward = dynamics.quadrotor_reward(
        air.vehicle.body, action=commands, next_body=after.body, dt=flight.DT
    )
    # Overwriting the oldest action costs 4 numbers; shifting the history would cost 128.
    ring = jax.lax.dynamic_update_index_in_dim(air.ring, action, at % _HISTORY, 0)
    age = air.age + 1
    over = dynamics.terminated(after.body) | (age >= flight.EPISODE)

    def begin_anew(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(over, a, b), new, old)

    vehicle, disturbance = begin_anew(fresh, (after, air.disturbance))
    seen = air.seen
    if draws is not None:
        seen = _observed(vehicle, disturbance, ring, jnp.where(over, 0, age), at, draws)
    return Air(vehicle, disturbance, ring, jnp.where(over, 0, age), air.total + reward, seen)


def _observed(
    vehicle: dynamics.Quadrotor,
    disturbance: dynamics.Disturbance,
    ring: jax.Array,
    age: jax.Array,
    at: jax.Array,
    draws: jax.Array,
) -> jax.Array:
    """What actor and critic see, a row for each number: `observe_actor` and `observe_critic`."""
    body, noise = vehicle.body, dynamics.OBSERVATION_NOISE
    rotation = dynamics.quat_to_matrix(body.orientation)
    exact = [*body.position, *jax.tree.leaves(rotation), *body.velocity, *body.angular_velocity]
    spread = [noise.position] * 3 + [noise.rotation] * 9
    spread += [noise.velocity] * 3 + [noise.angular_velocity] * 3
    sensed = [x + s * draw for x, s, draw in zip(exact, spread, draws, strict=True)]
    oldest_first = jnp.roll(ring, -(at + 1) % _HISTORY, axis=0)
    remembered = jnp.arange(_HISTORY, 0, -1)[:, None, None] <= age
    history = jnp.where(remembered, oldest_first, 0.0).reshape(ACTIONS * _HISTORY, -1)
    rest = jax.tree.leaves((disturbance, dynamics.normalized_speeds(vehicle.rpm)))
    return jnp.concatenate([jnp.stack(sensed), history, jnp.stack([*exact, *rest])])


def _own(tree: Any) -> Any:
    """The same arrays, none of which shares its memory: they are given away."""
    return jax.tree.map(jnp.copy, tree)


def _compiled(program: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.jit(program, donate_argnums=0, compiler_options=_OPTIONS)


def steps_per_second(
    program: Callable[[Any], Any], state: Any, *, steps: int, repeats: int = 3
) -> float:
    """Times a program.

    Args:
      program: A compiled function of a state, which it may consume.
      state: Its state.
      steps: Steps of all vehicles in one call.
      repeats: Calls after the first one; the fastest counts.

    Returns:
      Steps a second.
    """
    state = jax.block_until_ready(program(state))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        state = jax.block_until_ready(program(state))
        best = min(best, time.perf_counter() - started)
    return steps / best


def programs(
    *, batch: int, platform: str
) -> Mapping[str, tuple[int, Callable[[], tuple[Callable[[Any], Any], Any]]]]:
    """What can be timed.

    Args:
      batch: Vehicles.
      platform: Of the device.

    Returns:
      Name to steps of a vehicle in one call, and what makes the program.
    """
    found: dict[str, Any] = {}
    for simulator, steps in (
        (simulators.RK4_SOA, 2000),
        (simulators.EULER, 2000),
        (simulators.RK4_AOS, 200),
        (simulators.MJX, 5),
    ):
        make = functools.partial(
            kernel, batch=batch, steps=steps, simulator=simulator, platform=platform
        )
        found[f"kernel, {simulator}"] = steps, make
    for name, steps, observe in (("full step", 500, False), ("with observations", 100, True)):
        make = functools.partial(
            full_step, batch=batch, steps=steps, observe=observe, platform=platform
        )
        found[name] = steps, make
    return found
