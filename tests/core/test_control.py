import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from asym import control


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_target_takes_the_lower_critic_and_stops_at_failure(self):
        found = self.variant(
            lambda r, t, a, b: control.td3_target(r, terminated=t, q1=a, q2=b, gamma=0.5)
        )(
            jnp.array([1.0, 1.0, 1.0]),
            jnp.array([False, False, True]),
            jnp.array([2.0, 6.0, jnp.nan]),
            jnp.array([4.0, -2.0, 1.0]),
        )
        np.testing.assert_array_equal(found, [2.0, 0.0, 1.0])

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_fast_tanh_is_odd_bounded_and_close(self, dtype):
        x = jnp.linspace(-5, 5, 101).astype(dtype)
        y = self.variant(control.fast_tanh)(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, -self.variant(control.fast_tanh)(-x))
        assert np.abs(np.asarray(y, np.float32)).max() <= 1
        bound = 0.024 if dtype == jnp.float32 else 0.03
        np.testing.assert_allclose(
            np.asarray(y, np.float32), np.tanh(np.asarray(x, np.float32)), atol=bound
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_polyak_moves_by_its_share(self):
        target, online = {"w": jnp.zeros(2)}, {"w": jnp.array([1.0, -4.0])}
        found = self.variant(lambda t, o: control.polyak(target=t, online=o, tau=0.25))(
            target, online
        )
        np.testing.assert_allclose(found["w"], [0.25, -1.0])


@pytest.mark.parametrize("x", [-1e30, -3.0, -2.9, -0.5, 0.0, 1.0, 3.0, 7.0])
def test_derivative_is_that_of_the_tangent(x):
    y, slope = jax.value_and_grad(control.fast_tanh)(jnp.float32(x))
    np.testing.assert_allclose(slope, 1 - y**2, rtol=1e-6)
    if abs(x) >= 3:
        assert slope == 0


def test_losses_know_their_gradients():
    q, target = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.0, 2.0, 1.0])
    loss, gradient = jax.value_and_grad(lambda q: control.td3_critic_loss(q, target=target))(q)
    np.testing.assert_allclose(loss, 10 / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 / 3 * np.array([1.0, 0.0, 3.0]), rtol=1e-6)
    of_target = jax.grad(lambda t: control.td3_critic_loss(q, target=t))(target)
    np.testing.assert_array_equal(of_target, 0)
    np.testing.assert_allclose(jax.grad(control.td3_actor_loss)(q), -1 / 3, rtol=1e-6)


def test_no_gradient_enters_the_target():
    def target(values):
        return jnp.sum(
            control.td3_target(
                values, terminated=jnp.zeros(3, bool), q1=values, q2=2 * values, gamma=0.9
            )
        )

    np.testing.assert_array_equal(jax.grad(target)(jnp.ones(3)), 0)


def test_smoothed_actions_stay_within_noise_and_range():
    action = jnp.tile(jnp.array([-0.9, 0.0, 0.6]), (20000, 1))
    found = np.asarray(control.smoothed_action(action, key=jax.random.key(0), std=0.2, clip=0.5))
    assert found.min() >= -1 and found.max() <= 1
    assert np.abs(found - action).max() <= 0.5 + 1e-6
    # 1.2 % of the draws are clipped: the spread is a little below 0.2.
    assert found[:, 1].std() == pytest.approx(0.1975, abs=0.004)


def test_only_matrices_shrink_and_not_by_the_learning_rate():
    params = {"w": jnp.full((2, 2), 3.0), "b": jnp.full(2, 3.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for rate in (1e-3, 0.1):
        optimizer = control.td3_optimizer(rate, weight_shrinkage=0.01)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        after = optax.apply_updates(params, updates)
        np.testing.assert_allclose(after["w"], 2.97, rtol=1e-6)
        np.testing.assert_array_equal(after["b"], 3)


def test_curriculum_stops_at_its_cap():
    assert float(control.geometric_curriculum(2.0, factor=1.5, cap=10.0)) == 3
    assert float(control.geometric_curriculum(8.0, factor=1.5, cap=10.0)) == 10
