import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import similarity

GROUPS, VIEWS, DIM = 6, 4, 5

# Compiled whole: one operation at a time is correct too (VariantsTest), but takes seconds a test.
norm_ratio = jax.jit(similarity.norm_ratio)
loss_of_pairs = jax.jit(similarity.norm_ratio_loss)
loss_and_gradient = jax.jit(jax.value_and_grad(similarity.norm_ratio_loss))
directed_loss = jax.jit(similarity.directed_norm_ratio_loss)
score_pairs = jax.jit(similarity.asymmetric_similarity, static_argnames="mode")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _features(seed, shape=(GROUPS, VIEWS, DIM)):
    return np.random.default_rng(seed).normal(size=shape)


def _pairs(seed):
    """Index pairs of which the first group's is tied."""
    rng = np.random.default_rng(seed)
    hi = rng.integers(0, VIEWS, GROUPS)
    lo = (hi + rng.integers(1, VIEWS, GROUPS)) % VIEWS
    lo[0] = hi[0]
    return {"hi": hi, "lo": lo}


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_loss_of_known_lengths(self, dtype):
        features = jnp.array([[[3.0, 4.0], [0.0, 10.0]], [[1.0, 0.0], [0.0, 2.0]]], dtype)
        loss = self.variant(similarity.norm_ratio_loss)
        found = loss(features, hi=jnp.array([1, 0]), lo=jnp.array([0, 1]))
        self.assertEqual(found.dtype, jnp.float32)
        expected = (math.exp(1 - 2) + math.exp(1 - 0.5)) / 2
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_first_pair_with_different_scales_is_taken(self):
        scales = jnp.array([[0.5, 0.5, 1.0], [0.3, 0.3, 0.2], [0.7, 0.7, 0.7]])
        draws = jnp.array(
            [[[0, 1], [0, 2], [2, 1]], [[0, 2], [1, 2], [2, 2]], [[0, 1]] * 2 + [[2, 1]]]
        )
        hi, lo = self.variant(similarity.select_scale_pairs)(draws, scales)
        np.testing.assert_array_equal(hi, [2, 0, 2])
        np.testing.assert_array_equal(lo, [0, 2, 2])


def test_ratio_is_reciprocal_and_cosine_is_symmetric(x64):
    left, right = _features(0, (7, DIM)), _features(1, (7, DIM))
    forward = norm_ratio(query=left, reference=right)
    backward = norm_ratio(query=right, reference=left)
    np.testing.assert_allclose(forward * backward, np.ones(7), rtol=1e-14)
    everything = {"threshold": jnp.inf}
    forward = score_pairs(query=left, reference=right, **everything)
    backward = score_pairs(query=right, reference=left, **everything)
    np.testing.assert_allclose(forward, backward.T, rtol=1e-13)


def test_ratio_broadcasts_and_survives_zero():
    query, reference = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[0.0, 0.5]])
    found = norm_ratio(query=query, reference=reference)
    np.testing.assert_allclose(found, [10.0, 2e-12], rtol=1e-6)
    zeros = jnp.zeros(2)
    gradient = jax.jit(jax.grad(lambda q: similarity.norm_ratio(query=q, reference=zeros)))(zeros)
    np.testing.assert_array_equal(gradient, [0.0, 0.0])


def test_roles_cannot_be_told_by_position():
    with pytest.raises(TypeError):
        similarity.norm_ratio(jnp.ones(2), jnp.ones(2))


def test_at_most_one_direction_passes_the_filter():
    images = _features(2, (40, DIM)).astype(np.float32)
    # The last two have the very same length, which lets both directions pass.
    images[-1] = -images[-2]
    score = score_pairs(query=images, reference=images)
    passes = np.isfinite(score)
    both = passes & passes.T & ~np.eye(40, dtype=bool)
    assert sorted(zip(*np.nonzero(both), strict=True)) == [(38, 39), (39, 38)]
    assert np.all(passes | passes.T)
    ordered_pairs = 40 * 39
    assert np.sum(passes) - 40 == ordered_pairs // 2 + 1


def test_filter_decides_by_length_and_threshold():
    query, reference = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    found = score_pairs(query=query, reference=reference)
    np.testing.assert_allclose(found, [[-np.inf, 0.0, math.sqrt(0.5)]], rtol=1e-6)
    found = score_pairs(query=query, reference=reference, threshold=2.0)
    np.testing.assert_allclose(found, [[1.0, 0.0, math.sqrt(0.5)]], rtol=1e-6)


def test_one_ulp_too_long_is_filtered():
    reference = jnp.array([0.7])
    query = jnp.nextafter(reference, jnp.array([1.0]))
    assert not similarity.passes_filter(query=query, reference=reference)
    assert similarity.passes_filter(query=reference, reference=query)


def test_soft_mode_discounts_instead_of_deleting():
    pair = {"query": jnp.array([[4.0, 0.0]]), "reference": jnp.array([[1.0, 0.0], [8.0, 0.0]])}
    found = score_pairs(**pair, mode="soft", beta=0.5)
    np.testing.assert_allclose(found, [[0.5, 1.0]], rtol=1e-6)
    found = score_pairs(**pair, mode="soft", beta=0.0)
    np.testing.assert_allclose(found, [[1.0, 1.0]], rtol=1e-6)


def test_unknown_mode_is_refused():
    # Past the checker of annotations that the tests install, as a user without it would see.
    unchecked = similarity.asymmetric_similarity.__wrapped__
    with pytest.raises(ValueError, match="medium"):
        unchecked(query=jnp.ones((1, 2)), reference=jnp.ones((1, 2)), mode="medium")


def test_loss_gradient_is_radial_and_has_its_closed_form(x64):
    features, pairs = _features(3), _pairs(3)
    _, gradient = loss_and_gradient(features, **pairs)
    gradient = np.asarray(gradient)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    tangential = gradient - np.sum(gradient * unit, axis=-1, keepdims=True) * unit
    np.testing.assert_allclose(tangential, np.zeros_like(tangential), atol=1e-12)

    rows = np.arange(GROUPS)
    longer, shorter = features[rows, pairs["hi"]], features[rows, pairs["lo"]]
    length_hi, length_lo = np.linalg.norm(longer, axis=-1), np.linalg.norm(shorter, axis=-1)
    loss = np.exp(1 - length_hi / length_lo)
    expected_hi = -(loss / (length_hi * length_lo))[:, None] * longer / GROUPS
    expected_lo = (loss * length_hi / length_lo**3)[:, None] * shorter / GROUPS
    untied = rows[1:]
    np.testing.assert_allclose(gradient[untied, pairs["hi"][1:]], expected_hi[1:], rtol=1e-12)
    np.testing.assert_allclose(gradient[untied, pairs["lo"][1:]], expected_lo[1:], rtol=1e-12)
    np.testing.assert_array_equal(gradient[0], np.zeros((VIEWS, DIM)))


@pytest.mark.parametrize("scale", [1e-9, 0.1, 1e15])
def test_loss_does_not_depend_on_a_common_scale(x64, scale):
    features, pairs = _features(4), _pairs(4)
    found = loss_of_pairs(scale * features, **pairs)
    np.testing.assert_allclose(found, loss_of_pairs(features, **pairs), rtol=1e-14)


def test_swapped_roles_of_the_loss_are_linked_by_their_logarithms(x64):
    source, copy = _features(5, (9, DIM)), _features(6, (9, DIM))
    forward = directed_loss(source=source, copy=copy)
    backward = directed_loss(source=copy, copy=source)
    np.testing.assert_allclose((1 - np.log(forward)) * (1 - np.log(backward)), 1, rtol=1e-13)
    ratio = norm_ratio(query=source, reference=copy)
    np.testing.assert_allclose(backward, np.exp(1 - 1 / ratio), rtol=1e-14)


def test_tied_group_is_constant_one():
    same = np.arange(GROUPS) % VIEWS
    loss, gradient = loss_and_gradient(_features(7).astype(np.float32), hi=same, lo=same)
    assert loss == 1
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize(("longer", "shorter"), [(1e15, 0.0), (1e25, 1e-11), (0, 0), (1e-30, 1e15)])
def test_loss_and_gradient_are_finite_at_extreme_lengths(longer, shorter):
    features = np.array([[[longer, 0.0], [shorter, 0.0]]], np.float32)
    loss, gradient = loss_and_gradient(features, hi=np.array([0]), lo=np.array([1]))
    assert 0 <= loss <= math.e * (1 + 1e-6)
    assert np.all(np.isfinite(gradient))


def test_all_pairs_is_the_expectation_over_drawn_pairs(x64):
    features = _features(8)
    scales = np.random.default_rng(8).uniform(size=(GROUPS, VIEWS))
    scales[0] = scales[1, :2] = 0.5
    length = np.linalg.norm(features, axis=-1)
    total, count = np.zeros(GROUPS), np.zeros(GROUPS)
    for hi in range(VIEWS):
        for lo in range(VIEWS):
            penalty = np.exp(1 - length[:, hi] / length[:, lo])
            valid = scales[:, hi] > scales[:, lo]
            total += np.where(valid, penalty, 0)
            count += valid
    expected = np.mean(np.where(count > 0, total / np.maximum(count, 1), 1))
    all_pairs = jax.jit(jax.value_and_grad(similarity.norm_ratio_loss_all_pairs))
    found, gradient = all_pairs(features, scales)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_array_equal(gradient[0], np.zeros((VIEWS, DIM)))
    assert np.any(gradient[1:] != 0)


def test_extreme_views_are_selected():
    hi, lo = similarity.select_extreme_pairs(jnp.array([[0.2, 0.9, 0.4], [0.5, 0.5, 0.5]]))
    np.testing.assert_array_equal(hi, [1, 0])
    np.testing.assert_array_equal(lo, [0, 0])


def test_sampled_pairs_are_uniform_over_the_valid_ones():
    groups = 20_000
    scales = np.tile([1.0, 0.5, 0.5], (groups, 1))
    sample = jax.jit(similarity.sample_scale_pairs)
    hi, lo = sample(jax.random.key(0), scales)
    share = np.histogram2d(hi, lo, bins=(range(4), range(4)))[0] / groups
    # Of 9 ordered pairs 4 differ in scale: (0, 1) and (0, 2) in both orders.
    failed = (5 / 9) ** 5
    deviation = 4 * math.sqrt(0.25 / groups)
    np.testing.assert_allclose(share[0, 1:], (1 - failed) / 2, atol=deviation)
    # What is left is tied: hi = lo = the first of a pair that is uniform over the 5 tied ones.
    tied = np.array([1, 2, 2]) / 5 * failed
    np.testing.assert_allclose(np.diag(share), tied, atol=deviation)
    assert share[1:, 0].sum() == 0
    assert share[1, 2] == share[2, 1] == 0


def test_sampling_stops_after_the_last_try():
    scales = np.tile([1.0, 0.5], (20_000, 1))
    sample = jax.jit(similarity.sample_scale_pairs, static_argnames="max_tries")
    tied = []
    for tries in (1, 2):
        hi, lo = sample(jax.random.key(1), scales, max_tries=tries)
        tied.append(np.mean(hi == lo))
    np.testing.assert_allclose(tied, [1 / 2, 1 / 4], atol=4 * math.sqrt(0.25 / 20_000))


def test_vmap_over_seeds_equals_one_by_one():
    features, pairs = _features(9, (3, GROUPS, VIEWS, DIM)), _pairs(9)
    batched = jax.jit(
        jax.vmap(lambda f, hi, lo: similarity.norm_ratio_loss(f, hi=hi, lo=lo), (0, None, None))
    )(features, pairs["hi"], pairs["lo"])
    single = [loss_of_pairs(f, **pairs) for f in features]
    np.testing.assert_allclose(batched, single, rtol=1e-6)
