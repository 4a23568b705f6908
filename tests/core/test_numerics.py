import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import numerics

UNMASKED = {
    numerics.masked_sum: np.sum,
    numerics.masked_mean: np.mean,
    numerics.masked_variance: np.var,
    numerics.masked_max: np.max,
    numerics.masked_min: np.min,
    numerics.masked_logsumexp: np.logaddexp.reduce,
}
VALUE_WHERE_EMPTY = {
    numerics.masked_sum: 0,
    numerics.masked_mean: 0,
    numerics.masked_variance: 0,
    numerics.masked_max: -np.inf,
    numerics.masked_min: np.inf,
    numerics.masked_logsumexp: -np.inf,
}

norm_gradient = jax.jit(jax.grad(numerics.safe_norm))
log1mexp = jax.jit(jax.value_and_grad(numerics.log1mexp))
entropy = jax.jit(jax.value_and_grad(numerics.categorical_entropy))


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_norm_is_accumulated_in_float32(self, dtype):
        # 8192 ones: bfloat16 stops counting at 256.
        norm = self.variant(numerics.safe_norm)(jnp.ones((2, 8192), dtype))
        self.assertEqual(norm.dtype, jnp.float32)
        np.testing.assert_allclose(norm, math.sqrt(8192), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    # By name: the address in a function's own name differs between the workers of a test run.
    @parameterized.named_parameters((f.__name__, f) for f in UNMASKED)
    def test_masked_reduction_sees_only_what_is_kept(self, reduction):
        values = jnp.array([[1.0, jnp.nan, 3.0], [jnp.inf, 5.0, -2.0]])
        mask = jnp.array([[True, False, True], [False, True, True]])
        found = self.variant(lambda v, m: reduction(v, m, axis=1))(values, mask)
        dense = np.array([[1.0, 3.0], [5.0, -2.0]])
        np.testing.assert_allclose(found, UNMASKED[reduction](dense, axis=1), rtol=1e-6)


def test_norm_has_the_unit_vector_as_gradient():
    x = jnp.array([3.0, -4.0])
    np.testing.assert_allclose(numerics.safe_norm(x), 5.0, rtol=1e-6)
    np.testing.assert_allclose(norm_gradient(x), [0.6, -0.8], rtol=1e-6)


def test_norm_of_zero_has_gradient_zero():
    np.testing.assert_array_equal(numerics.safe_norm(jnp.zeros(3)), 0.0)
    np.testing.assert_array_equal(norm_gradient(jnp.zeros(3)), np.zeros(3))


def test_norm_below_eps_is_eps_without_gradient():
    def norm(x):
        return numerics.safe_norm(x, eps=1e-3)

    np.testing.assert_allclose(norm(jnp.array([3e-4, 4e-4])), 1e-3, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(jax.grad(norm))(jnp.array([3e-4, 4e-4])), [0.0, 0.0])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norm_neither_overflows_nor_vanishes(scale):
    x = scale * jnp.array([3.0, 4.0])
    np.testing.assert_allclose(numerics.safe_norm(x), 5 * scale, rtol=1e-6)
    np.testing.assert_allclose(norm_gradient(x), [0.6, 0.8], rtol=1e-6)


def test_norm_of_an_infinite_vector_is_infinite():
    assert numerics.safe_norm(jnp.array([1.0, -jnp.inf])) == jnp.inf


def test_norm_has_the_curvature_of_a_length():
    # The Hessian of the length is (I - u u^T) / length: the detached divisor must not change it.
    hessian = jax.jit(jax.hessian(numerics.safe_norm))(jnp.array([3.0, 4.0]))
    unit = np.array([0.6, 0.8])
    np.testing.assert_allclose(hessian, (np.eye(2) - np.outer(unit, unit)) / 5, atol=1e-6)


def test_norm_axis_and_keepdims():
    x = jnp.arange(6.0).reshape(2, 3)
    expected = np.linalg.norm(np.asarray(x), axis=0, keepdims=True)
    found = numerics.safe_norm(x, axis=0, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sqrt_slope_is_zero_where_there_is_no_root():
    x = jnp.array([4.0, 0.0, -1.0])
    np.testing.assert_array_equal(numerics.safe_sqrt(x), [2.0, 0.0, 0.0])
    slope = jax.jit(jax.vmap(jax.grad(numerics.safe_sqrt)))(x)
    np.testing.assert_array_equal(slope, [0.25, 0.0, 0.0])


def test_normalize_keeps_zero_and_scales_the_rest():
    unit = numerics.normalize(jnp.array([[3.0, 4.0], [0.0, 0.0], [3e20, 4e20]]))
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]], rtol=1e-6)
    assert np.all(np.isfinite(jax.jit(jax.jacobian(numerics.normalize))(jnp.zeros(2))))


def test_divide_by_zero_gives_the_fallback_and_no_gradient():
    def divide(denominator):
        return numerics.safe_divide(numerator=6.0, denominator=denominator, fallback=-1.0)

    denominator = jnp.array([3.0, 0.0])
    np.testing.assert_allclose(divide(denominator), [2.0, -1.0])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(divide)))(denominator), [-6 / 9, 0.0], rtol=1e-6
    )


@pytest.mark.parametrize("reduction", VALUE_WHERE_EMPTY)
def test_empty_mask_is_legal(reduction):
    mask = jnp.array([[True, True], [False, False]])
    values = jnp.array([[1.0, 2.0], [jnp.nan, 1e30]])

    @jax.jit
    def reduce_and_pull_back(values):
        found, pull_back = jax.vjp(lambda v: reduction(v, mask, axis=1), values)
        return found, *pull_back(jnp.ones(2))

    found, gradient = reduce_and_pull_back(values)
    assert found[1] == VALUE_WHERE_EMPTY[reduction]
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[1], [0.0, 0.0])


def test_mask_broadcasts_and_weights_count():
    values = jnp.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])
    weights = jnp.array([1.0, 3.0, 0.0])
    np.testing.assert_allclose(numerics.masked_sum(values, weights, axis=1), [7.0, 15.0])
    np.testing.assert_allclose(numerics.masked_mean(values, weights, axis=1), [1.75, 3.75])
    np.testing.assert_allclose(numerics.masked_mean(values, weights, axis=1, eps=1.0), [1.4, 3.0])


def test_mask_must_fit_the_values():
    with pytest.raises(AssertionError):
        numerics.masked_sum(jnp.ones(3), jnp.ones((2, 3)))


def test_variance_of_population_and_sample():
    values, mask = jnp.array([1.0, 2.0, 3.0, 99.0]), jnp.array([1, 1, 1, 0])
    np.testing.assert_allclose(numerics.masked_variance(values, mask), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(numerics.masked_variance(values, mask, ddof=1), 1.0, rtol=1e-6)
    single = numerics.masked_variance(values, jnp.array([1, 0, 0, 0]), ddof=1)
    np.testing.assert_array_equal(single, 0.0)


def test_variance_survives_a_large_offset():
    values = 1e4 + jnp.array([0.0, 1.0, 2.0])
    found = numerics.masked_variance(values, jnp.ones(3))
    np.testing.assert_allclose(found, 2 / 3, rtol=1e-5)


def test_logsumexp_of_extreme_entries():
    values = jnp.array([[1e4, 1e4, 0.0], [-1e4, -1e4, 5e4], [-jnp.inf, 1.0, 0.0]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [1, 1, 0]])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def logsumexp(values):
        found = numerics.masked_logsumexp(values, mask, axis=1)
        return jnp.sum(found), found

    (_, found), gradient = logsumexp(values)
    np.testing.assert_allclose(found, [1e4 + math.log(2), -1e4 + math.log(2), 1.0], rtol=1e-7)
    np.testing.assert_allclose(gradient, [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 1, 0]], atol=1e-7)


@pytest.mark.parametrize("x", [-1e-10, -0.1, -math.log(2), -1.0, -30.0, -1e4])
def test_log1mexp_keeps_its_digits(x):
    # -expm1 is exact near 0, where the value matters; far away the logarithm is linear in exp(x).
    expected = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    value, slope = log1mexp(x)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(slope, -math.exp(x) / -math.expm1(x), rtol=1e-5)


def test_log1mexp_of_certainty():
    assert numerics.log1mexp(jnp.array(0.0)) == -jnp.inf


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], math.log(4)),
        ([1e4, -1e4, 0.0], 0.0),
        ([5.0, -np.inf, 5.0], math.log(2)),
        ([3.0, -np.inf, -np.inf], 0.0),
    ],
)
def test_entropy_of_known_distributions(logits, expected):
    value, gradient = entropy(np.array(logits))
    np.testing.assert_allclose(value, expected, atol=1e-6)
    # Each case is a maximum over its possible classes, or has no second class to move to.
    np.testing.assert_allclose(gradient, np.zeros_like(gradient), atol=1e-6)


def test_entropy_is_a_mean_log_probability():
    logits = jax.random.normal(jax.random.key(0), (5, 3))
    probability = np.asarray(jax.nn.softmax(logits, axis=0), dtype=np.float64)
    expected = -np.sum(probability * np.log(probability), axis=0)
    found = numerics.categorical_entropy(logits, axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
