import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import fusion, multimodal
from asym.fusion import Affine

BATCH, CLASSES = 7, 4
WIDTHS = 3, 5, 2


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _layer(seed, inputs, outputs=CLASSES):
    return Affine(_normal(seed, inputs, outputs), _normal(seed + 1, outputs))


def _features(seed, widths=WIDTHS):
    return [_normal(seed + place, BATCH, width) for place, width in enumerate(widths)]


def _labels(seed):
    return jnp.asarray(np.random.default_rng(seed).integers(0, CLASSES, BATCH))


def _shares(seed, draws, modalities):
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(modalities), draws))


def _assert_finite_gradient(function, *arguments):
    """Of all outputs with respect to the first argument."""
    assert np.all(np.isfinite(jax.jit(jax.jacrev(function))(*arguments)))


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_weights_of_known_variances(self, dtype):
        var = jnp.array([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0], [0.0, 1.0, 0.0]], dtype)
        weights = self.variant(multimodal.inverse_variance_weights)(var)
        self.assertEqual(weights.dtype, jnp.float32)
        expected = [[4 / 7, 2 / 7, 1 / 7], [1 / 3] * 3, [0.5, 0.0, 0.5]]
        np.testing.assert_allclose(weights, expected, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_analysis_of_known_logits(self, dtype):
        sure, guess = jnp.array([[8.0, -8.0]] * 3, dtype), jnp.array([[1.0, 1.0]] * 3, dtype)
        found = self.variant(multimodal.modality_analysis)((sure, guess))
        chex.assert_shape(list(found), (2,))
        self.assertEqual({leaf.dtype for leaf in found}, {jnp.dtype(jnp.float32)})
        wrong = math.exp(-16) / (1 + math.exp(-16))
        entropy = -wrong * math.log(wrong) - (1 - wrong) * math.log1p(-wrong)
        # Absolute: float32 holds no more of a probability next to 1 and of its logarithm.
        np.testing.assert_allclose(found.entropy, [entropy, math.log(2)], atol=1e-7)
        share = 1 / (1 + entropy / math.log(2))
        np.testing.assert_allclose(found.entropy_ratio, [0.3, share], rtol=1e-6)
        np.testing.assert_allclose(found.dependence, [16 / 18, 2 / 18], rtol=1e-6)
        inverse = np.array([1 / 0.3, 1 / share])
        inverse /= inverse.sum()
        np.testing.assert_allclose(found.inverse_variance, inverse, rtol=1e-6)
        lead = 8 * (2 / 18 * inverse[0] - 16 / 18 * inverse[1])
        np.testing.assert_allclose(found.coefficient[0], 1 / (1 + math.exp(-lead)), rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_scaled_gradient(self, dtype):
        x, k = jnp.array([1.1, -2.3, 1e30], dtype), jnp.float32(0.75)

        def pull_back(x, k):
            y, backward = jax.vjp(multimodal.grad_scale, x, k)
            return y, backward(jnp.array([1.0, 2.0, -4.0], dtype))

        y, (gradient, gradient_k) = self.variant(pull_back)(x, k)
        self.assertEqual((y.dtype, gradient.dtype), (dtype, dtype))
        np.testing.assert_array_equal(y.astype(jnp.float32), x.astype(jnp.float32))
        np.testing.assert_array_equal(gradient.astype(jnp.float32), [1.75, 3.5, -7.0])
        self.assertEqual(gradient_k, 0)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_loss_of_known_logits(self, dtype):
        fused, plain = jnp.array([[0.0, 0.0], [2.0, 0.0]], dtype), jnp.zeros((2, 2), dtype)
        loss = self.variant(multimodal.arl_loss)(
            fused=fused, unimodal=(plain, fused), labels=jnp.array([0, 1]), gamma=3.0
        )
        first = (math.log(2) + math.log1p(math.exp(2))) / 2
        np.testing.assert_allclose(loss.fused, first, rtol=1e-6)
        np.testing.assert_allclose(loss.unimodal, [math.log(2), first], rtol=1e-6)
        np.testing.assert_allclose(loss.total, 4 * first + 3 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("modalities", [2, 4])
def test_inverse_variance_weights_are_the_optimum(x64, modalities):
    var = jnp.exp(2 * _normal(0, 50, modalities))
    weights = multimodal.inverse_variance_weights(var)
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones(50), rtol=1e-14)
    least = multimodal.fused_variance(weights=weights, var=var)
    np.testing.assert_allclose(least, 1 / np.sum(1 / np.asarray(var), axis=-1), rtol=1e-13)
    # Every other mixture adds exactly sum_i delta_i^2 v_i, the optimum being stationary.
    step = _normal(1, 50, modalities)
    step -= step.mean(axis=-1, keepdims=True)
    worse = multimodal.fused_variance(weights=weights + step, var=var)
    np.testing.assert_allclose(worse - least, jnp.sum(step**2 * var, axis=-1), rtol=1e-9)


def test_equal_weights_are_optimal_for_equal_variances_only(x64):
    var = jnp.array([[2.0, 2.0], [1.0, 2.0], [2.0, 1.0]])
    least = multimodal.fused_variance(weights=multimodal.inverse_variance_weights(var), var=var)
    balanced = multimodal.fused_variance(weights=jnp.full_like(var, 0.5), var=var)
    np.testing.assert_allclose(least, [1, 2 / 3, 2 / 3], rtol=1e-14)
    np.testing.assert_allclose(balanced, [1, 3 / 4, 3 / 4], rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_weights_do_not_depend_on_the_unit_of_variance(scale):
    var = jnp.array([1.0, 3.0])
    found = multimodal.inverse_variance_weights(scale * var)
    np.testing.assert_allclose(found, [0.75, 0.25], rtol=1e-6)
    found = multimodal.correlated_weights(scale * var, -0.5)
    np.testing.assert_allclose(found, multimodal.correlated_weights(var, -0.5), rtol=1e-6)


def test_gradient_of_weights_passes_the_smallest_variance(x64):
    gradient = jax.jit(jax.grad(lambda var: multimodal.inverse_variance_weights(var)[0]))
    # w_0 = v_1 / (v_0 + v_1)
    np.testing.assert_allclose(gradient(jnp.array([1.0, 3.0])), [-3 / 16, 1 / 16], rtol=1e-14)
    np.testing.assert_allclose(gradient(jnp.array([3.0, 1.0])), [-1 / 16, 3 / 16], rtol=1e-14)
    for var in ([0.0, 1.0], [0.0, 0.0], [1e-30, 1e30]):
        assert np.all(np.isfinite(gradient(jnp.array(var))))


def test_correlated_weights_are_the_optimum(x64):
    var = jnp.exp(_normal(2, 40, 2))
    rho = jnp.asarray(np.random.default_rng(3).uniform(-1, 0.99, 40))
    weights = jax.jit(multimodal.correlated_weights)(var, rho)
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones(40), rtol=1e-12)
    covariance = rho * jnp.sqrt(var[:, 0] * var[:, 1])
    textbook = (var[:, 1] - covariance) / (var.sum(axis=-1) - 2 * covariance)
    np.testing.assert_allclose(weights[:, 0], textbook, rtol=1e-9)

    def variance(first, var, rho):
        mixture = jnp.stack([first, 1 - first])
        return multimodal.fused_variance(weights=mixture, var=var, correlation=rho)

    slope = jax.jit(jax.vmap(jax.grad(variance)))(weights[:, 0], var, rho)
    np.testing.assert_allclose(slope, np.zeros(40), atol=1e-12)
    independent = multimodal.correlated_weights(var, 0.0)
    np.testing.assert_allclose(independent, multimodal.inverse_variance_weights(var), rtol=1e-13)


def test_correlated_weights_at_their_limits():
    weights = jax.jit(multimodal.correlated_weights)

    def found(var, rho):
        return weights(jnp.array(var), rho)

    # Fully correlated errors: the difference of the two predictions cancels all of them.
    np.testing.assert_allclose(found([1.0, 4.0], 1.0), [2.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(found([1.0, 4.0], -1.0), [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(found([2.0, 2.0], 1.0), [0.5, 0.5])
    np.testing.assert_array_equal(found([0.0, 0.0], 0.3), [0.5, 0.5])
    for var, rho in (([2.0, 2.0], 1.0), ([0.0, 0.0], 0.0), ([0.0, 1.0], 0.5)):
        _assert_finite_gradient(multimodal.correlated_weights, jnp.array(var), rho)


def test_fused_variance_of_equally_correlated_errors(x64):
    weights, deviation, rho = _normal(4, 3), jnp.exp(_normal(5, 3)), 0.4
    covariance = np.outer(deviation, deviation) * (rho + (1 - rho) * np.eye(3))
    found = multimodal.fused_variance(weights=weights, var=deviation**2, correlation=rho)
    np.testing.assert_allclose(found, weights @ covariance @ weights, rtol=1e-13)


def test_dependence_is_scale_free_and_equal_for_nothing():
    logits = [_normal(6, BATCH, CLASSES), _normal(7, BATCH, CLASSES), _normal(8, BATCH, CLASSES)]
    found = multimodal.modality_dependence(logits)
    size = np.array([np.abs(z).mean(axis=0).sum() for z in logits])
    np.testing.assert_allclose(found, size / size.sum(), rtol=1e-6)
    scaled = multimodal.modality_dependence([-1e4 * z for z in logits])
    np.testing.assert_allclose(scaled, found, rtol=1e-6)
    nothing = [jnp.zeros((BATCH, CLASSES))] * 3
    np.testing.assert_allclose(multimodal.modality_dependence(nothing), [1 / 3] * 3)
    _assert_finite_gradient(lambda z: multimodal.modality_dependence([z, *nothing[1:]]), nothing[0])


def test_entropy_does_not_depend_on_a_shift_and_is_finite_when_saturated(x64):
    logits = 3 * _normal(9, BATCH, CLASSES)
    entropy_and_gradient = jax.jit(jax.value_and_grad(multimodal.prediction_entropy))
    found = entropy_and_gradient(logits)[0]
    np.testing.assert_allclose(entropy_and_gradient(logits + 50)[0], found, rtol=1e-12)
    probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.sum(probability * np.log(probability), axis=-1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    entropy, gradient = entropy_and_gradient(1e4 * logits)
    assert entropy == 0
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_certain_predictions_are_equally_good(floor):
    certain = jnp.zeros(2)
    ratio = multimodal.inverse_entropy_ratio
    np.testing.assert_array_equal(ratio(certain, floor=floor), [0.5, 0.5])
    _assert_finite_gradient(lambda entropy: ratio(entropy, floor=floor), certain)


def test_floor_bounds_the_inverse_entropy_ratio(x64):
    entropy = jnp.array([[0.0, 1.7], [1e-9, 1.0], [1.7, 0.0]])
    low, high = 0.3 / 1.3, 1 / 1.3
    found = multimodal.inverse_entropy_ratio(entropy)
    np.testing.assert_allclose(found, [[high, low], [high, low], [low, high]], rtol=1e-8)
    found = multimodal.inverse_entropy_ratio(jnp.array([1.0, 3.0]), floor=0.0)
    np.testing.assert_allclose(found, [0.75, 0.25], rtol=1e-14)
    # Within the bound the ratio is inverse to the entropy.
    found = multimodal.inverse_entropy_ratio(jnp.array([4.0, 5.0]))
    np.testing.assert_allclose(found, [5 / 9, 4 / 9], rtol=1e-14)


def test_boosted_is_what_is_relied_on_less_than_it_deserves(x64):
    dependence, inverse_variance = _shares(10, 1000, 2), _shares(11, 1000, 2)
    shares = {"dependence": dependence, "inverse_variance": inverse_variance}
    found = multimodal.asymmetric_coefficients(**shares)
    np.testing.assert_allclose(found.sum(axis=-1), np.ones(1000), rtol=1e-14)
    ratio = dependence[:, 0] / dependence[:, 1]
    deserved = inverse_variance[:, 0] / inverse_variance[:, 1]
    np.testing.assert_array_equal(found[:, 0] > found[:, 1], ratio < deserved)
    assert 100 < np.sum(ratio < deserved) < 900
    fixed_point = multimodal.asymmetric_coefficients(
        dependence=dependence, inverse_variance=dependence, sharpness=50.0
    )
    np.testing.assert_array_equal(fixed_point, np.full((1000, 2), 0.5))
    swapped = multimodal.asymmetric_coefficients(
        dependence=inverse_variance, inverse_variance=dependence
    )
    np.testing.assert_allclose(swapped, found[:, ::-1], rtol=1e-14)


def test_roles_cannot_be_told_by_position():
    with pytest.raises(TypeError):
        multimodal.asymmetric_coefficients(jnp.ones(2) / 2, jnp.ones(2) / 2)


def test_sharpness_parts_the_coefficients(x64):
    shares = {
        "dependence": jnp.array([0.9, 0.1]),
        "inverse_variance": jnp.array([0.4, 0.6]),
    }
    flat = multimodal.asymmetric_coefficients(**shares, sharpness=0.0)
    np.testing.assert_array_equal(flat, [0.5, 0.5])
    found = multimodal.asymmetric_coefficients(**shares, sharpness=8.0)
    np.testing.assert_allclose(jnp.log(found[1] / found[0]), 8 * (0.54 - 0.04), rtol=1e-13)


def test_three_modalities_are_ordered_by_what_they_deserve(x64):
    dependence, inverse_variance = _shares(12, 200, 3), _shares(13, 200, 3)
    found = multimodal.asymmetric_coefficients(
        dependence=dependence, inverse_variance=inverse_variance, sharpness=0.01
    )
    deserved = inverse_variance / dependence
    # Strict order where it is resolved, by the ratio of any two coefficients.
    for i, j in ((0, 1), (1, 2), (0, 2)):
        np.testing.assert_array_equal(found[:, i] > found[:, j], deserved[:, i] > deserved[:, j])
    equal = multimodal.asymmetric_coefficients(dependence=dependence, inverse_variance=dependence)
    np.testing.assert_allclose(equal, np.full((200, 3), 1 / 3), rtol=1e-12)


@pytest.mark.parametrize("modalities", [2, 3])
def test_coefficients_are_finite_for_an_unused_modality(modalities):
    unused = jnp.eye(modalities)[0]
    equal = jnp.full(modalities, 1 / modalities)

    def first(dependence):
        return multimodal.asymmetric_coefficients(
            dependence=dependence, inverse_variance=equal, sharpness=8.0
        )[0]

    coefficient, gradient = jax.jit(jax.value_and_grad(first))(unused)
    assert coefficient < 0.1
    assert np.all(np.isfinite(gradient))


def test_analysis_has_no_gradient_and_takes_seeds_as_a_batch():
    logits = _normal(14, 3, 2, BATCH, CLASSES)

    def coefficients(pair):
        return multimodal.modality_analysis(list(pair)).coefficient

    gradient = jax.jit(jax.grad(lambda pair: coefficients(pair)[0]))(logits[0])
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    one = jax.jit(coefficients)
    single = [one(pair) for pair in logits]
    np.testing.assert_allclose(jax.jit(jax.vmap(coefficients))(logits), single, rtol=1e-5)


def test_analysis_flattens_the_batch():
    pair = [_normal(15, 6, CLASSES), 2 * _normal(16, 6, CLASSES)]
    analysis = jax.jit(multimodal.modality_analysis)
    found = analysis([z.reshape(2, 3, CLASSES) for z in pair])
    chex.assert_trees_all_close(found, analysis(pair), rtol=1e-5)


def test_encoder_gradients_are_scaled_and_the_head_is_left_alone(x64):
    features, labels = _features(17), _labels(18)
    encoders = [_normal(19 + m, width, 4) for m, width in enumerate(WIDTHS)]
    head, strength = _layer(23, 12), jnp.array([0.1, 0.6, 0.3])

    def loss(encoders, head, strength):
        hidden = [jnp.tanh(x @ encoder) for x, encoder in zip(features, encoders, strict=True)]
        hidden = [multimodal.grad_scale(h, k) for h, k in zip(hidden, strength, strict=True)]
        logits = fusion.concat_fusion(hidden, head)
        return multimodal.arl_loss(
            fused=logits.fused, unimodal=logits.unimodal, labels=labels
        ).total

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    plain, plain_head, _ = gradient(encoders, head, jnp.zeros(3))
    scaled, scaled_head, of_strength = gradient(encoders, head, strength)
    for k, before, after in zip(strength, plain, scaled, strict=True):
        np.testing.assert_allclose(after, (1 + k) * before, rtol=1e-13)
    chex.assert_trees_all_equal(plain_head, scaled_head)
    np.testing.assert_array_equal(of_strength, np.zeros(3))


def test_scaling_under_vmap_takes_one_strength_a_row():
    x, k = _normal(24, 3, 2), jnp.array([0.0, 0.5, 4.0])

    def total(x, k):
        return jnp.sum(jnp.square(multimodal.grad_scale(x, k)))

    found = jax.jit(jax.vmap(jax.grad(total)))(x, k)
    np.testing.assert_allclose(found, 2 * x * (1 + k[:, None]), rtol=1e-6)
    with pytest.raises(AssertionError):
        multimodal.grad_scale(x, k)


def test_loss_without_gamma_is_the_fused_cross_entropy(x64):
    fused, labels = _normal(25, BATCH, CLASSES), _labels(26)
    unimodal = [_normal(27, BATCH, CLASSES), _normal(28, BATCH, CLASSES)]

    def total(fused, unimodal):
        return multimodal.arl_loss(fused=fused, unimodal=unimodal, labels=labels, gamma=0.0).total

    of_fused, of_unimodal = jax.jit(jax.grad(total, argnums=(0, 1)))(fused, unimodal)
    probability = np.exp(fused) / np.exp(fused).sum(axis=-1, keepdims=True)
    expected = (probability - np.eye(CLASSES)[labels]) / BATCH
    np.testing.assert_allclose(of_fused, expected, atol=1e-15)
    chex.assert_trees_all_equal(of_unimodal, [jnp.zeros_like(z) for z in unimodal])


@pytest.mark.parametrize("sign", [1, -1])
def test_loss_is_finite_for_saturated_logits(sign):
    logits, labels = sign * 1e4 * jnp.eye(CLASSES), jnp.arange(CLASSES)

    def total(z):
        return multimodal.arl_loss(fused=z, unimodal=[z, -z], labels=labels).total

    loss, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert np.all(np.isfinite(gradient))
    # Of z and -z one is right without a doubt, the other wrong by the whole margin.
    wrong = 1e4 + math.log(CLASSES - 1)
    np.testing.assert_allclose(loss, (4 if sign > 0 else 5) * wrong, rtol=1e-6)


def test_ogm_slows_down_the_better_modality_only(x64):
    # Probabilities of the true class 0.8 and 0.5 everywhere.
    better = jnp.log(jnp.array([[0.8, 0.2]] * 3))
    worse, labels = jnp.zeros((3, 2)), jnp.zeros(3, int)
    coefficients = jax.jit(multimodal.ogm_ge_coefficients)
    found = coefficients([better, worse], labels, alpha=0.8)
    slowed = 1 - math.tanh(0.8 * 1.6)
    np.testing.assert_allclose(found, [slowed, 1], rtol=1e-13)
    found = coefficients([worse, better], labels, alpha=0.8)
    np.testing.assert_allclose(found, [1, slowed], rtol=1e-13)
    found = coefficients([worse, worse], labels, alpha=0.8)
    np.testing.assert_array_equal(found, [1, 1])


def test_ogm_sums_probabilities_and_not_logarithms(x64):
    logits, labels = [_normal(63, BATCH, CLASSES), _normal(64, BATCH, CLASSES)], _labels(65)
    probability = [np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) for z in logits]
    score = [p[np.arange(BATCH), labels].sum() for p in probability]
    ratio = np.array([score[0] / score[1], score[1] / score[0]])
    expected = np.where(ratio > 1, 1 - np.tanh(0.3 * ratio), 1)
    found = multimodal.ogm_ge_coefficients(logits, labels, alpha=0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_ogm_is_finite_for_confident_errors():
    right = 1e4 * jnp.eye(CLASSES)

    def slowed(right):
        return multimodal.ogm_ge_coefficients([right, -right], jnp.arange(CLASSES)).sum()

    found, gradient = jax.jit(jax.value_and_grad(slowed))(right)
    assert found == 1
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(("scale", "shortened"), [(1.0, False), (1e3, True), (1e25, True)])
def test_joint_norm_is_bounded(scale, shortened):
    gradients = {"a": scale * jnp.array([[3.0], [0.0]]), "b": (jnp.array(-4.0 * scale),)}
    clipped, norm = jax.jit(multimodal.clip_global_norm)(gradients, 40.0)
    np.testing.assert_allclose(norm, 5 * scale, rtol=1e-6)
    if shortened:
        np.testing.assert_allclose(clipped["a"], [[24.0], [0.0]], rtol=1e-6)
        np.testing.assert_allclose(clipped["b"][0], -32.0, rtol=1e-6)
    else:
        chex.assert_trees_all_equal(clipped, gradients)


def test_clipping_keeps_zeros_and_dtypes():
    gradients = [jnp.zeros(3, jnp.bfloat16), jnp.zeros(2)]
    clipped, norm = jax.jit(multimodal.clip_global_norm)(gradients)
    chex.assert_trees_all_equal(clipped, gradients)
    chex.assert_trees_all_equal_dtypes(clipped, gradients)
    assert norm == 0
    slope = jax.jit(jax.grad(lambda g: multimodal.clip_global_norm(g)[1]))(
        [jnp.zeros(3), jnp.zeros(2)]
    )
    chex.assert_trees_all_equal(slope, [jnp.zeros(3), jnp.zeros(2)])
