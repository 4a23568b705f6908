import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import stats
from scipy.spatial.transform import Rotation

from asym import dynamics
from asym.dynamics import Disturbance, Quadrotor, Quaternion, RigidBody, Rotors, Vector

ORIGIN = Vector(0.0, 0.0, 0.0)
UPRIGHT = Quaternion(1.0, 0.0, 0.0, 0.0)
STOPPED = Rotors(0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


def _normal(seed, like):
    """Random components of a batch of five."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda _: jnp.asarray(generator.normal(size=5)), like)


def _unit(seed):
    return dynamics.quat_normalize(_normal(seed, UPRIGHT))


def _body(seed=0):
    like = RigidBody(ORIGIN, UPRIGHT, ORIGIN, ORIGIN)
    return _normal(seed, like)._replace(orientation=_unit(seed + 1))


def _columns(vector):
    return np.stack([np.asarray(c) for c in vector], axis=-1)


def _scipy(rotation):
    w, x, y, z = (np.asarray(c, np.float64) for c in rotation)
    return Rotation.from_quat(np.stack([x, y, z, w], axis=-1))


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_rotation_agrees_with_scipy(self):
        with jax.enable_x64(True):
            rotation, vector = _unit(0), _normal(1, ORIGIN)
            rotated = self.variant(dynamics.quat_rotate)(rotation, vector)
            rows = self.variant(dynamics.quat_to_matrix)(rotation)
        expected = _scipy(rotation)
        np.testing.assert_allclose(
            _columns(rotated), expected.apply(_columns(vector)), rtol=0, atol=1e-14
        )
        np.testing.assert_allclose(
            np.stack([_columns(row) for row in rows], axis=1),
            expected.as_matrix(),
            rtol=0,
            atol=1e-14,
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_product_is_the_composition_of_rotations(self):
        with jax.enable_x64(True):
            left, right, vector = _unit(2), _unit(3), _normal(4, ORIGIN)
            once = self.variant(dynamics.quat_rotate)(dynamics.quat_mul(left, right), vector)
            twice = dynamics.quat_rotate(left, dynamics.quat_rotate(right, vector))
        np.testing.assert_allclose(_columns(once), _columns(twice), rtol=0, atol=1e-14)

    @chex.variants(with_jit=True, without_jit=True)
    def test_reward_of_known_numbers(self):
        # 5 * 4 (position) + 5 * 3/4 (tilt) + 0.01 * 9 (velocity) + 0.01 * 4 * 0.25 (action)
        body = RigidBody(
            Vector(0.0, 2.0, 0.0),
            Quaternion(0.5, 0.0, 0.75**0.5, 0.0),
            Vector(0.0, 0.0, 3.0),
            ORIGIN,
        )
        action = Rotors(*[dynamics.HOVER_ACTION + 0.5] * 4)
        after = body._replace(position=ORIGIN)
        found = self.variant(lambda b, a, n: dynamics.quadrotor_reward(b, action=a, next_body=n))(
            _arrays(body), _arrays(action), _arrays(after)
        )
        np.testing.assert_allclose(found, 2 - 0.5 * (20 + 3.75 + 0.09 + 0.01), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("position", "velocity", "angular_velocity")
    def test_termination_is_strict_and_by_component(self, name):
        limit = {"position": 0.6}.get(name, 1000.0)
        body = _arrays(RigidBody(ORIGIN, UPRIGHT, ORIGIN, ORIGIN))
        terminated = self.variant(dynamics.terminated)
        for place in range(3):
            for sign in (-1, 1):
                for factor, expected in ((1.0, False), (1.001, True)):
                    vector = [jnp.float32(0)] * 3
                    vector[place] = jnp.float32(sign * factor * limit)
                    assert bool(terminated(body._replace(**{name: Vector(*vector)}))) is expected


def test_pack_and_unpack_are_inverse():
    body = _body()
    packed = dynamics.pack(body)
    assert packed.shape == (5, 13)
    chex.assert_trees_all_equal(dynamics.unpack(packed, like=body), body)
    with pytest.raises(AssertionError):
        dynamics.unpack(packed[:, :12], like=body)


def test_lift_of_the_rotors_is_rotated_like_any_vector(x64):
    rotation, length = _unit(0), _normal(1, 0.0)
    expected = dynamics.quat_rotate(rotation, Vector(0 * length, 0 * length, length))
    chex.assert_trees_all_close(dynamics.rotated_up(rotation, length), expected, atol=1e-15)


def test_quaternion_derivative_keeps_the_length(x64):
    rotation, spin = _unit(0), _normal(1, ORIGIN)
    change = dynamics.quat_derivative(rotation, spin)
    product = sum(q * d for q, d in zip(rotation, change, strict=True))
    np.testing.assert_allclose(product, 0, atol=1e-15)
    expected = dynamics.quat_mul(rotation, Quaternion(0 * spin.x, *spin))
    chex.assert_trees_all_close(change, jax.tree.map(lambda q: q / 2, expected), atol=1e-15)


def test_cross_product_turns_its_sign(x64):
    a, b = _normal(0, ORIGIN), _normal(1, ORIGIN)
    np.testing.assert_allclose(
        _columns(dynamics.cross(a, b)), np.cross(_columns(a), _columns(b)), atol=1e-15
    )
    np.testing.assert_allclose(dynamics.dot(a, dynamics.cross(a, b)), 0, atol=1e-15)


@pytest.mark.parametrize("rotor", range(4))
def test_each_rotor_lifts_and_turns_by_its_place(rotor, x64):
    rpm = [0.0] * 4
    rpm[rotor] = 20000.0
    thrust, torque = dynamics.rotor_wrench(Rotors(*rpm))
    vehicle = dynamics.CRAZYFLIE
    lift = vehicle.thrust_curve[2] * 20000.0**2
    assert thrust == pytest.approx(lift)
    x, y = vehicle.rotor_positions[rotor]
    arm = np.cross([x, y, 0], [0, 0, lift])
    arm[2] = vehicle.torque_constant * vehicle.rotor_directions[rotor] * lift
    np.testing.assert_allclose(torque, arm, rtol=1e-14)


def test_hovering_rotors_carry_the_vehicle(x64):
    speed = dynamics.hover_speed()
    assert speed == pytest.approx(14475.9, abs=0.1)
    body = _arrays(RigidBody(ORIGIN, UPRIGHT, ORIGIN, ORIGIN))
    change = dynamics.rigid_body_derivative(body, rpm=Rotors(*[speed] * 4))
    np.testing.assert_allclose(_columns(change.velocity), 0, atol=1e-12)
    np.testing.assert_allclose(_columns(change.angular_velocity), 0, atol=1e-12)
    rounded = dynamics.rotor_speeds(_arrays(Rotors(*[dynamics.HOVER_ACTION] * 4)))
    fall = dynamics.rigid_body_derivative(body, rpm=rounded).velocity.z
    assert abs(fall) < 1e-3


@pytest.mark.parametrize("dt", [0.01, 0.3])
def test_free_fall_is_exact(dt, x64):
    body = _arrays(RigidBody(ORIGIN, UPRIGHT, ORIGIN, ORIGIN))
    for _ in range(10):
        body = dynamics.rigid_body_step(body, rpm=STOPPED, dt=dt)
    time = 10 * dt
    np.testing.assert_allclose(body.position.z, -9.81 * time**2 / 2, rtol=1e-14)
    np.testing.assert_allclose(body.velocity.z, -9.81 * time, rtol=1e-14)


def test_motors_follow_by_the_known_factor(x64):
    state = _arrays(Quadrotor(RigidBody(ORIGIN, UPRIGHT, ORIGIN, ORIGIN), Rotors(*[8000.0] * 4)))
    goal = dynamics.rotor_speeds(_arrays(Rotors(*[0.1] * 4))).first
    h = 0.01 / 0.15
    factor = 1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24
    for step in range(1, 5):
        state = dynamics.quadrotor_step(state, action=_arrays(Rotors(*[0.1] * 4)))
        np.testing.assert_allclose(goal - state.rpm.first, (goal - 8000) * factor**step, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 3e-7), (jnp.float64, 1e-12)])
def test_quaternion_stays_of_length_one(dtype, bound, x64):
    state = Quadrotor(_body(3), Rotors(*[jnp.full(5, 9000.0)] * 4))
    state = jax.tree.map(lambda a: a.astype(dtype), state)
    step = jax.jit(lambda s: dynamics.quadrotor_step(s, action=_arrays(Rotors(0.3, 0.4, 0.2, 0.5))))
    for _ in range(50):
        state = step(state)
        length = np.linalg.norm(_columns(state.body.orientation).astype(np.float64), axis=-1)
        np.testing.assert_allclose(length, 1, atol=bound)
        chex.assert_tree_all_finite(state)


def test_runge_kutta_is_of_fourth_order_and_euler_of_first(x64):
    def error(step, number):
        state = _arrays(Vector(1.0, 0.0, 0.5))
        for _ in range(number):
            state = step(lambda s: Vector(s.y, -s.x, -s.z), state, 1.0 / number)
        exact = (math.cos(1), -math.sin(1), 0.5 * math.exp(-1))
        return max(abs(float(a) - b) for a, b in zip(state, exact, strict=True))

    for step, order in ((dynamics.rk4_step, 4), (dynamics.euler_step, 1)):
        measured = math.log2(error(step, 20) / error(step, 40))
        assert measured == pytest.approx(order, abs=0.1)


def test_momentum_and_energy_without_rotors(x64):
    body = _body(5)
    vehicle = dynamics.CRAZYFLIE

    def angular_momentum(body):
        spin = body.angular_velocity
        local = Vector(*(j * w for j, w in zip(vehicle.inertia, spin, strict=True)))
        return _columns(dynamics.quat_rotate(body.orientation, local))

    def energy(body):
        spin = sum(j * w**2 for j, w in zip(vehicle.inertia, body.angular_velocity, strict=True))
        return spin / 2 + vehicle.mass * (
            dynamics.squared_norm(body.velocity) / 2 - vehicle.gravity * body.position.z
        )

    step = jax.jit(lambda b: dynamics.rigid_body_step(b, rpm=STOPPED))
    after = body
    for _ in range(100):
        after = step(after)
    np.testing.assert_allclose(angular_momentum(after), angular_momentum(body), rtol=1e-7)
    np.testing.assert_allclose(energy(after), energy(body), rtol=1e-10)


def test_disturbance_pushes_by_newton(x64):
    body = _arrays(RigidBody(ORIGIN, UPRIGHT, ORIGIN, ORIGIN))
    push = _arrays(Disturbance(Vector(0.027, 0.0, 0.0), Vector(0.0, 3.85e-6, 0.0)))
    change = dynamics.rigid_body_derivative(body, rpm=STOPPED, disturbance=push)
    np.testing.assert_allclose(_columns(change.velocity), [1, 0, -9.81], rtol=1e-12)
    np.testing.assert_allclose(_columns(change.angular_velocity), [0, 1, 0], rtol=1e-12)


def test_actions_and_speeds_are_inverse_within_the_range():
    action = _arrays(Rotors(-1.0, -0.2, 0.6, 1.0))
    back = dynamics.normalized_speeds(dynamics.rotor_speeds(action))
    chex.assert_trees_all_close(back, action, atol=1e-6)
    beyond = dynamics.rotor_speeds(_arrays(Rotors(-7.0, 7.0, 1.0, -1.0)))
    np.testing.assert_array_equal(beyond, [0, 21702, 21702, 0])


def test_reward_does_not_know_the_sign_of_a_quaternion():
    body = _body()
    flipped = body._replace(orientation=Quaternion(*(-q for q in body.orientation)))
    action = _arrays(Rotors(0.1, 0.2, 0.3, 0.4))
    rewards = [dynamics.quadrotor_reward(b, action=action, next_body=b) for b in (body, flipped)]
    np.testing.assert_array_equal(*rewards)


def test_costs_of_acceleration_use_both_states(x64):
    body, after = _body(0), _body(1)
    action = _arrays(Rotors(0.1, 0.2, 0.3, 0.4))
    costs = dynamics.reward_costs(body, action=action, next_body=after, dt=0.5)
    difference = _columns(after.velocity) - _columns(body.velocity)
    np.testing.assert_allclose(costs.linear_acceleration, 4 * (difference**2).sum(-1), rtol=1e-12)
    difference = _columns(after.angular_velocity) - _columns(body.angular_velocity)
    np.testing.assert_allclose(costs.angular_acceleration, 4 * (difference**2).sum(-1), rtol=1e-12)


def test_a_failed_step_earns_nothing():
    body = _arrays(RigidBody(Vector(0.59, 0.0, 0.0), UPRIGHT, ORIGIN, ORIGIN))
    out = body._replace(position=_arrays(Vector(0.61, 0.0, 0.0)))
    action = _arrays(Rotors(0.3, 0.3, 0.3, 0.3))
    assert dynamics.quadrotor_reward(body, action=action, next_body=out) == 0
    assert dynamics.quadrotor_reward(body, action=action, next_body=body) > 0
    # Even where the state after the step is far beyond all numbers.
    broken = body._replace(velocity=_arrays(Vector(1e30, 0.0, 0.0)))
    heavy = dynamics.TARGET_WEIGHTS._replace(linear_acceleration=1.0)
    found = dynamics.quadrotor_reward(body, action=action, next_body=broken, weights=heavy)
    assert found == 0


def test_curriculum_raises_three_weights_up_to_their_targets():
    weights = dynamics.INITIAL_WEIGHTS
    after = dynamics.next_weights(weights)
    assert float(after.position) == pytest.approx(6.0)
    assert float(after.velocity) == float(after.action) == pytest.approx(0.014)
    assert after.orientation == 5.0
    for _ in range(40):
        after = dynamics.next_weights(after)
    assert [float(w) for w in after] == [float(w) for w in dynamics.TARGET_WEIGHTS]


def test_actor_and_critic_see_their_parts():
    state = Quadrotor(_body(), Rotors(*[jnp.full(5, 10851.0)] * 4))
    push = _normal(3, dynamics.UNDISTURBED)
    history = jnp.arange(5 * 32 * 4.0).reshape(5, 32, 4)
    actor = dynamics.observe_actor(state.body, history=history)
    critic = dynamics.observe_critic(state, disturbance=push)
    assert actor.shape == (5, 146) and critic.shape == (5, 28)
    np.testing.assert_array_equal(actor[:, :18], critic[:, :18])
    np.testing.assert_array_equal(actor[:, 18:], history.reshape(5, 128))
    np.testing.assert_array_equal(critic[:, 18:21], dynamics.pack(push.force))
    np.testing.assert_array_equal(critic[:, 21:24], dynamics.pack(push.torque))
    np.testing.assert_array_equal(critic[:, 24:], 0)


def test_noise_of_the_observation_has_its_spreads():
    body = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (20000,)), _body())
    history = jnp.zeros((20000, 2, 4))
    clean = dynamics.observe_actor(body, history=history)
    draws = jax.random.normal(jax.random.key(0), (20000, 18))
    noisy = dynamics.observe_actor(body, history=history, draws=draws)
    spread = np.std(noisy - clean, axis=0)
    np.testing.assert_allclose(spread[:12], 0.001, rtol=0.03)
    np.testing.assert_allclose(spread[12:18], 0.002, rtol=0.03)
    np.testing.assert_array_equal(spread[18:], 0)


def test_history_forgets_the_oldest():
    history = jnp.arange(12.0).reshape(3, 4)
    after = dynamics.push_history(history, jnp.full(4, 9.0))
    np.testing.assert_array_equal(after[:2], history[1:])
    np.testing.assert_array_equal(after[2], 9)


@functools.cache
def _beginnings():
    return dynamics.sample_initial_state(jax.random.key(1), shape=(40000,))


def test_beginnings_keep_to_their_ranges():
    state, push = _beginnings()
    body = state.body
    position, velocity, spin = map(_columns, (body.position, body.velocity, body.angular_velocity))
    guided = np.all(position == 0, axis=-1)
    assert guided.mean() == pytest.approx(0.1, abs=0.006)
    np.testing.assert_array_equal(np.asarray(body.orientation.w)[guided], 1)
    assert np.abs(position).max() <= 0.2 and np.abs(velocity).max() <= 1
    for values, limit in ((position[~guided], 0.2), (velocity, 1.0), (spin, 1.0)):
        np.testing.assert_allclose(values.std(axis=0), limit / math.sqrt(3), rtol=0.02)
    np.testing.assert_allclose(_columns(push.force).std(axis=0), 0.0132435, rtol=0.02)
    np.testing.assert_allclose(_columns(push.torque).std(axis=0), 2.6487e-5, rtol=0.02)
    np.testing.assert_array_equal(state.rpm.first, 10851)
    assert not np.any(dynamics.terminated(body))


def test_orientations_have_the_law_of_rejection():
    rotation = dynamics.sample_orientation(jax.random.key(0), shape=(40000,))
    angle = 2 * np.arccos(np.clip(np.asarray(rotation.w, np.float64), -1, 1))
    assert angle.max() <= dynamics.RIGHT_ANGLE + 1e-6
    # Uniform rotations, rejected as the authors do.
    uniform = Rotation.random(400000, rng=np.random.default_rng(0)).as_quat()
    accepted = 2 * np.arccos(np.clip(uniform[:, 3], -1, 1))
    accepted = accepted[accepted <= dynamics.RIGHT_ANGLE]
    assert len(accepted) > 10000
    assert stats.ks_2samp(angle, accepted).pvalue > 0.01
    axis = _columns(rotation[1:]) / np.sin(angle / 2)[:, None]
    np.testing.assert_allclose(axis.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose((axis[:, 2] ** 2).mean(), 1 / 3, rtol=0.02)


@pytest.mark.parametrize("fraction", [0.0, 1e-30, 1e-6, 0.5, 1.0])
def test_no_angle_is_lost_at_the_ends(fraction):
    found = dynamics.hovering._limited_angle(jnp.float32(fraction), math.pi)
    assert np.isfinite(found)
    with jax.enable_x64(True):
        exact = dynamics.hovering._limited_angle(jnp.float64(fraction), math.pi)
        np.testing.assert_allclose(exact - jnp.sin(exact), fraction * math.pi, atol=1e-15)


def test_gradient_passes_through_a_step(x64):
    state = Quadrotor(_body(), Rotors(*[jnp.full(5, 10851.0)] * 4))

    @jax.jit
    def height(action):
        moved = state
        for _ in range(3):
            moved = dynamics.quadrotor_step(moved, action=Rotors(*[action] * 4))
        return jnp.sum(moved.body.position.z)

    action, small = jnp.full(5, 0.2), 1e-6
    slope = jax.grad(height)(action)
    numeric = [
        (height(action.at[i].add(small)) - height(action.at[i].add(-small))) / (2 * small)
        for i in range(5)
    ]
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)
    assert np.all(np.abs(slope) > 0)
