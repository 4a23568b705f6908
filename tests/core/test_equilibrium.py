"""Activations, relaxation, Cauchy derivatives and measures of symmetry, without a network."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import equilibrium

# Programs that run once: most of the time goes into making them, and less so unoptimised.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16, jnp.complex64)
    def test_activations_at_their_centres(self, dtype):
        sigmoid = self.variant(equilibrium.shifted_sigmoid)(jnp.array([0.5, -1e4, 1e4], dtype))
        ramp = self.variant(equilibrium.dsilu)(jnp.array([1.0, -1e4, 1e4], dtype))
        self.assertEqual((sigmoid.dtype, ramp.dtype), (dtype, dtype))
        np.testing.assert_allclose(sigmoid.astype(complex), [0.5, 0, 1], atol=1e-7)
        tolerance = 4e-3 if dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(ramp.astype(complex), [0.5, 0, 1], atol=tolerance)

    @chex.variants(with_jit=True, without_jit=True)
    def test_relaxation_of_a_linear_map(self):
        relax = self.variant(
            lambda u: equilibrium.relax(lambda v: 1 - 0.5 * v, u, 7), static_argnums=()
        )
        found = relax(jnp.zeros(2))
        np.testing.assert_allclose(found, np.full(2, (1 - (-0.5) ** 7) / 1.5), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(0, 1, 2, 5)
    def test_cauchy_derivative_of_the_exponential(self, n):
        beta = 0.5
        found = self.variant(
            lambda b: equilibrium.cauchy_derivative(lambda z: {"f": jnp.exp(z)}, b, n)
        )(beta)["f"]
        self.assertEqual(found.dtype, jnp.float32)
        if n == 1:
            expected = np.expm1(beta) / beta
        else:
            # Aliasing: the sum keeps the Taylor coefficients number 1, 1 + n, 1 + 2n, ...
            expected = 1.0 + sum(
                beta ** (n * k) / float(jnp.exp(jax.lax.lgamma(2.0 + n * k)))
                for k in range(1, 6)
                if n > 0
            )
        np.testing.assert_allclose(found, expected, rtol=3e-7 * 4)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_symmetry_measures_of_known_matrices(self, dtype):
        matrices = jnp.array(
            [[[1, 2], [2, 3]], [[0, 1], [-1, 0]], [[0, 2], [0, 0]], [[0, 0], [0, 0]]], dtype
        )
        ratio = self.variant(equilibrium.jacobian_symmetry_ratio)(matrices)
        loss = self.variant(equilibrium.homeostatic_loss_exact)(matrices)
        np.testing.assert_allclose(ratio, [1, 0, 0.5, 1], rtol=1e-6)
        np.testing.assert_allclose(loss, [0, 2, 2, 0], rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_log_residual_of_known_lengths(self):
        change = {
            "a": jnp.array([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
            "b": jnp.array([4j, 0.0, 10.0]),
        }
        found = self.variant(equilibrium.log_residual)(change)
        np.testing.assert_allclose(found, [np.log10(5), -8, 1], rtol=1e-6)


@pytest.mark.parametrize("act", [equilibrium.shifted_sigmoid, equilibrium.dsilu])
def test_activations_are_holomorphic(act, x64):
    points = jnp.array([0.3 + 0.2j, -2.0 - 0.1j, 5.0 + 0.5j, -400.0 + 1.0j, 400.0 - 1.0j])
    along = _jit(lambda direction: jax.jvp(act, (points,), (direction,))[1])
    along_real = along(jnp.ones_like(points))
    along_imaginary = along(1j * jnp.ones_like(points))
    np.testing.assert_allclose(along_imaginary, 1j * along_real, rtol=1e-12, atol=1e-300)
    compiled = _jit(act)
    np.testing.assert_allclose(compiled(points.conj()), np.conj(compiled(points)), rtol=1e-14)
    on_axis = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(compiled(on_axis + 0j), compiled(on_axis), rtol=1e-12)


@pytest.mark.parametrize("act", [equilibrium.shifted_sigmoid, equilibrium.dsilu])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_slopes_stay_finite_far_out(act, dtype):
    far = jnp.array([-3e38, -1e4, -100, 0, 100, 1e4, 3e38], dtype) / 8
    slopes = _jit(jax.vmap(jax.grad(act)))(far)
    assert np.all(np.isfinite(slopes))
    np.testing.assert_allclose(np.asarray(slopes, float)[[0, 1, -2, -1]], 0, atol=1e-3)
    turned = far.astype(jnp.complex64)
    assert np.all(np.isfinite(jax.jvp(act, (turned,), (jnp.ones_like(turned),))[1]))


def test_slope_of_the_sigmoid_is_one_at_one_half():
    assert _jit(jax.grad(equilibrium.shifted_sigmoid))(0.5 * jnp.ones(())) == pytest.approx(1)


def test_pool_lies_between_mean_and_maximum(x64):
    v = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 6, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(v, (3, 2), axis=(1, 2))[:, ::2, ::2]
    pool = _jit(equilibrium.softmax_pool, static_argnums=(1, 2))
    cold, warm = pool(v, (3, 2), (2, 2), 1e-4), pool(v, (3, 2), (2, 2), 1e9)
    np.testing.assert_allclose(cold, windows.max((-2, -1)), atol=1e-6)
    np.testing.assert_allclose(warm, windows.mean((-2, -1)), atol=1e-8)
    between = pool(v, (3, 2), (2, 2), 0.5)
    assert np.all((between < cold) & (between > warm))


def test_pool_commutes_with_a_shift_also_a_complex_one(x64):
    v = jnp.asarray(np.random.default_rng(2).normal(size=(1, 4, 4, 2)))
    shift = 0.7 + 0.4j
    pool = _jit(equilibrium.softmax_pool)
    np.testing.assert_allclose(pool(v + shift), pool(v) + shift, rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pool_is_finite_and_splits_ties_evenly(dtype):
    v = jnp.array([[1e4, -1e4], [3.0, 3.0]], dtype)[None, :, :, None]
    gradient_of = _jit(jax.value_and_grad(lambda v: equilibrium.softmax_pool(v).sum()))
    value, gradient = gradient_of(v)
    assert float(value) == pytest.approx(1e4, rel=4e-3)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])
    _, tied = gradient_of(jnp.full((1, 2, 2, 1), 7, dtype))
    np.testing.assert_array_equal(tied, np.full((1, 2, 2, 1), 0.25))


def test_pool_refuses_windows_larger_than_the_map():
    with pytest.raises(AssertionError):
        equilibrium.softmax_pool(jnp.zeros((1, 2, 1, 3)))


def test_damping_ends_an_orbit_of_period_two():
    def flip(u):
        return -u

    start = jnp.ones(2)
    np.testing.assert_array_equal(equilibrium.relax(flip, start, 6), start)
    np.testing.assert_array_equal(equilibrium.relax(flip, start, 7), -start)
    np.testing.assert_array_equal(equilibrium.relax(flip, start, 1, damping=0.5), 0 * start)


def test_relax_keeps_half_precision_and_has_a_reverse_mode_gradient():
    start = jnp.ones(3, jnp.bfloat16)
    damped = equilibrium.relax(lambda u: 0.5 * u, start, 3, damping=jnp.float32(0.5))
    assert damped.dtype == jnp.bfloat16
    gradient = jax.grad(lambda a: equilibrium.relax(lambda u: a * u, 1.0 + 0 * a, 5))(2.0)
    assert gradient == pytest.approx(5 * 2.0**4)


def test_relax_until_counts_its_steps():
    found = _jit(lambda u: equilibrium.relax_until(lambda v: 0.5 * v, u, 0.1, 50))(jnp.ones(2))
    # Changes are 1/2, 1/4, 1/8, 1/16: the fourth is the first below the tolerance.
    assert (found.num_steps, found.change) == (4, 1 / 16)
    np.testing.assert_array_equal(found.states, np.full(2, 1 / 16))
    orbit = equilibrium.relax_until(lambda v: -v, jnp.ones(2, complex), 0.1, 9)
    assert (orbit.num_steps, orbit.change) == (9, 2)
    none = equilibrium.relax_until(lambda v: -v, jnp.ones(2), 0.1, 0)
    assert (none.num_steps, none.change) == (0, np.inf)


def test_relax_until_batches_and_has_a_forward_mode_derivative():
    def limit(a):
        return equilibrium.relax_until(lambda u: a + 0.5 * u, 0.0 * a, 1e-6, 100).states

    value, tangent = jax.jvp(jax.vmap(limit), (jnp.arange(3.0),), (jnp.ones(3),))
    np.testing.assert_allclose(value, 2 * np.arange(3), atol=1e-5)
    np.testing.assert_allclose(tangent[1:], 2, atol=1e-5)


def test_gradient_of_the_residual_is_finite_at_rest():
    gradient = _jit(jax.grad(lambda f: equilibrium.log_residual(f).sum()))(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, 0)


def test_circle_closes_and_its_points_cancel(x64):
    points = np.asarray(_jit(equilibrium.circle_points)(0.3, 6, jnp.arange(12)))
    np.testing.assert_allclose(points[:6], points[6:], rtol=1e-14)
    np.testing.assert_allclose(abs(points), 0.3, rtol=1e-14)
    assert abs(np.sum(1 / points[:6])) < 1e-13


def test_cauchy_derivative_converges_only_inside_the_poles(x64):
    def f(z):
        return 1 / (1 - z)

    found = _jit(equilibrium.cauchy_derivative, static_argnums=(0, 2))
    inside = [abs(found(f, 0.5, n) - 1) for n in (2, 8, 32)]
    expected = [0.5**n / (1 - 0.5**n) for n in (2, 8, 32)]
    np.testing.assert_allclose(inside, expected, rtol=1e-12, atol=1e-14)
    outside = [abs(found(f, 2.0, n) - 1) for n in (8, 32)]
    assert min(outside) > 0.9


def test_cauchy_derivative_takes_the_start_it_is_given():
    found = equilibrium.cauchy_derivative(lambda z: 3 * z + 1, 0.5, 1, f0=jnp.zeros(()))
    assert found == pytest.approx(5)
    with pytest.raises(AssertionError):
        equilibrium.cauchy_derivative(jnp.exp, 0.5, -1)


def test_exact_error_does_not_mind_saturated_units():
    weights = jnp.array([[0.0, 0.5], [0.25, 0.0]])
    found = _jit(equilibrium.exact_ep_error_vector)(
        weights, slope=jnp.array([0.0, 1.0]), gradient=jnp.array([7.0, 2.0])
    )
    np.testing.assert_allclose(found, [0, 2])


def test_cosine_by_layer():
    estimate = {"a": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "b": jnp.ones((2, 1, 2, 2))}
    reference = {"a": jnp.array([[1.0, 1.0], [3.0, 0.0]]), "b": -2 * jnp.ones((2, 1, 2, 2))}
    found = _jit(equilibrium.error_cosine)(estimate=estimate, reference=reference)
    np.testing.assert_allclose(found["a"], [np.sqrt(0.5), 0], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [-1, -1], rtol=1e-6)
    with pytest.raises(TypeError):
        equilibrium.error_cosine(estimate, reference)


def test_rotation_of_feedback():
    rng = np.random.default_rng(4)
    forward, feedback = (jnp.asarray(rng.normal(size=s)) for s in ((300, 200), (200, 300)))

    @_jit
    def angle(degrees):
        turned = equilibrium.rotate_feedback(forward=forward, feedback=feedback, angle_deg=degrees)
        params = {"up": {"kernel": forward}, "down": {"kernel": turned}}
        return equilibrium.feedback_angle(params, [("up", "down")])

    for degrees in (0.0, 30.0, 90.0):
        # Independent matrices of 60000 entries are orthogonal within half a degree.
        assert angle(degrees) == pytest.approx(degrees, abs=1)
    tied = equilibrium.rotate_feedback(forward=forward, feedback=feedback, angle_deg=0.0)
    np.testing.assert_array_equal(tied, forward.T)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 2)))
    same = equilibrium.rotate_feedback(forward=kernel, feedback=0 * kernel, angle_deg=0.0)
    np.testing.assert_array_equal(same, kernel)


def test_angle_pools_pairs_and_is_exact_at_its_ends():
    def connection(*values):
        return {"kernel": jnp.array([values])}

    params = {
        "ab": connection(1.0, 0.0),
        "ba": {"kernel": jnp.array([[2.0], [0.0]])},
        "cd": connection(0.0, 3.0),
        "dc": {"kernel": jnp.array([[0.0], [-3.0]])},
    }
    angle = _jit(equilibrium.feedback_angle, static_argnums=1)
    pooled = angle(params, (("ab", "ba"), ("cd", "dc")))
    cosine = (1 * 2 - 3 * 3) / np.sqrt((1 + 9) * (4 + 9))
    assert pooled == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-5)
    assert angle(params, (("ab", "ba"),)) == 0
    assert angle(params, (("cd", "dc"),)) == 180
    assert np.isnan(equilibrium.feedback_angle(params, ()))
    gradient = _jit(jax.grad(lambda p: equilibrium.feedback_angle(p, (("ab", "ba"),))))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
