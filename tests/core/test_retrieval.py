import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import retrieval, similarity

LABELS = np.array([0, 0, 1, 1, 2, 2])

# Compiled whole: one operation at a time is correct too (VariantsTest), but takes seconds a test.
hardest_distances = jax.jit(retrieval.batch_hard_distances)
triplet = jax.jit(jax.value_and_grad(retrieval.soft_batch_hard_triplet))
cosface = jax.jit(jax.value_and_grad(retrieval.pairwise_cosface))
cross_entropy = jax.jit(jax.value_and_grad(retrieval.label_smoothed_cross_entropy))
gem_pool = jax.jit(retrieval.gem_pool)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_cross_entropy_of_uniform_logits(self, dtype):
        loss = self.variant(retrieval.label_smoothed_cross_entropy)
        found = loss(jnp.zeros((2, 3), dtype), jnp.array([0, 2]), 0.1)
        self.assertEqual(found.dtype, jnp.float32)
        np.testing.assert_allclose(found, math.log(3), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_triplet_of_two_equal_rows(self):
        loss = self.variant(retrieval.soft_batch_hard_triplet)
        np.testing.assert_allclose(loss(jnp.ones((2, 3)), jnp.arange(2)), math.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    "loss", [retrieval.soft_batch_hard_triplet, retrieval.pairwise_cosface], ids=["triplet", "cos"]
)
def test_half_precision_is_only_rounded_at_the_input(loss):
    loss = jax.jit(loss)
    features = jnp.asarray(_normal(0, 6, 4), jnp.bfloat16)
    found = loss(features, LABELS)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, loss(np.asarray(features, np.float32), LABELS), rtol=1e-6)


def test_gem_pool_is_the_mean_then_the_maximum():
    x = np.abs(_normal(1, 2, 3, 5, 4)) + 0.1
    np.testing.assert_allclose(gem_pool(x, 1.0), x.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(gem_pool(x, 1e4), x.max((1, 2)), rtol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e30])
def test_gem_pool_is_finite_and_homogeneous(scale):
    x = np.float32(scale) * np.abs(_normal(2, 2, 3, 3, 2))
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda x, p: retrieval.gem_pool(x, p).mean(), argnums=(0, 1))
    )
    value, gradients = value_and_grad(x, 3.0)
    assert value >= 1e-6 * (1 - 1e-6)
    chex.assert_tree_all_finite(gradients)
    if scale == 1e30:
        np.testing.assert_allclose(value / scale, value_and_grad(x / scale, 3.0)[0], rtol=1e-5)


def test_hardest_distances_of_points_on_a_line(x64):
    features = jnp.array([[0.0], [3.0], [4.0], [9.0]])
    positive, negative = hardest_distances(features, jnp.array([0, 0, 1, 1]))
    np.testing.assert_allclose(positive, [3, 3, 5, 5], rtol=1e-14)
    np.testing.assert_allclose(negative, [4, 1, 1, 6], rtol=1e-14)


def test_lonely_row_is_its_own_positive():
    # Squared lengths of 1e6 leave a tenth behind when they cancel in float32.
    positive, _ = hardest_distances(1e3 * _normal(12, 6, 4), np.arange(6))
    np.testing.assert_allclose(positive, 1e-6, rtol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_triplet_is_a_cross_entropy_with_mass_margin_on_the_positive(x64, margin):
    features, labels = _normal(3, 6, 4).astype(np.float64), LABELS
    positive, negative = hardest_distances(features, labels)
    odds = np.exp(np.stack([positive, negative]))
    log_probability = np.log(odds / odds.sum(axis=0))
    expected = np.mean(-margin * log_probability[0] - (1 - margin) * log_probability[1])
    found, _ = triplet(features, labels, margin)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_row_without_a_negative_adds_nothing():
    loss, gradient = triplet(_normal(4, 6, 4), np.zeros(6, int), 0.3)
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("scale", [0.0, 1e6])
def test_metric_losses_are_finite_at_extremes(scale):
    features = np.float32(scale) * _normal(5, 6, 4)
    chex.assert_tree_all_finite(triplet(features, LABELS, 0.0))
    chex.assert_tree_all_finite(cosface(features, LABELS, 0.35, 32.0))


def test_cross_entropy_of_uniform_logits_and_its_gradient():
    labels = np.array([0, 3])
    value, gradient = cross_entropy(np.zeros((2, 4)), labels, 0.1)
    np.testing.assert_allclose(value, math.log(4), rtol=1e-6)
    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    np.testing.assert_allclose(gradient, (0.25 - target) / 2, atol=1e-7)


def test_cross_entropy_of_extreme_logits():
    value, gradient = cross_entropy(np.array([[1e4, -1e4]]), np.array([0]), 0.1)
    np.testing.assert_allclose(value, 0.05 * 2e4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.05, -0.05]], atol=1e-6)


def test_cosface_of_one_positive_and_one_negative(x64):
    angles = np.array([0.0, 0.4, 1.5])
    features = np.stack([2 * np.cos(angles), 2 * np.sin(angles)], axis=1)
    found, _ = cosface(features, np.array([0, 0, 1]), 0.3, 4.0)
    pull = -4 * np.cos(0.4)
    push = 4 * (np.cos([1.5, 1.1]) + 0.3)
    # The third row has no positive and adds nothing.
    np.testing.assert_allclose(found, np.sum(np.log1p(np.exp(pull + push))) / 3, rtol=1e-12)


@pytest.mark.parametrize("labels", [np.zeros(6, int), np.arange(6)], ids=["one class", "all"])
def test_cosface_without_a_positive_or_a_negative_is_zero_without_gradient(labels):
    value, gradient = cosface(_normal(6, 6, 4), labels, 0.35, 32.0)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_asl_loss_is_the_weighted_sum_of_its_parts():
    features, logits, labels = _normal(7, 3, 2, 4), _normal(8, 3, 2, 5), LABELS.reshape(3, 2)
    pairs = {"hi": np.zeros(3, int), "lo": np.ones(3, int)}
    metric = 8 * features / np.linalg.norm(features, axis=-1, keepdims=True)
    loss = jax.jit(retrieval.asl_loss)(
        features, logits, labels, **pairs, metric_features=metric, norm_ratio_weight=3.0
    )
    expected, _ = triplet(metric.reshape(6, 4), LABELS, 0.0)
    np.testing.assert_allclose(loss.triplet, expected, rtol=1e-6)
    expected, _ = cross_entropy(logits.reshape(6, 5), LABELS, 0.1)
    np.testing.assert_allclose(loss.cross_entropy, expected, rtol=1e-6)
    expected = jax.jit(similarity.norm_ratio_loss)(features, **pairs)
    np.testing.assert_allclose(loss.norm_ratio, expected, rtol=1e-6)
    expected = 10 * loss.cross_entropy + loss.triplet + 3 * loss.norm_ratio
    np.testing.assert_allclose(loss.total, expected, rtol=1e-6)


def test_symmetric_control_has_no_norm_ratio_gradient():
    @jax.jit
    @jax.grad
    def gradient(features, weight):
        zeros, ones = jnp.zeros(3, int), jnp.ones(3, int)
        logits, labels = jnp.zeros((3, 2, 5)), jnp.asarray(LABELS.reshape(3, 2))
        weights = {"triplet_weight": 0.0, "norm_ratio_weight": weight}
        return retrieval.asl_loss(features, logits, labels, hi=zeros, lo=ones, **weights).total

    features = _normal(9, 3, 2, 4)
    assert np.all(gradient(features, 0.0) == 0)
    assert np.all(gradient(features, 1.0) != 0)


def test_micro_average_precision_of_a_short_list():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    is_match = np.array([True, False, True, False])
    found = retrieval.micro_average_precision(scores, is_match, num_positives=4)
    assert found == pytest.approx((1 + 2 / 3) / 4, rel=1e-15)


def test_ties_hurt():
    tied, is_match = np.zeros(4), np.array([True, False, False, False])
    assert retrieval.micro_average_precision(tied, is_match, 1) == 0.25
    # Whatever the order in which the candidates arrive.
    assert retrieval.micro_average_precision(tied, is_match[::-1].copy(), 1) == 0.25
    pairs = {"query": np.zeros(4, int), "reference": np.arange(4)}
    truth = np.array([[0, 2]])
    found = [
        retrieval.recall_at_rank(tied, **pairs, ground_truth=truth, rank=rank) for rank in (3, 4)
    ]
    assert found == [0, 1]


def test_metrics_agree_with_a_plain_loop():
    rng = np.random.default_rng(10)
    scores, is_match = rng.integers(0, 15, 80).astype(float), rng.random(80) < 0.4
    order = sorted(range(80), key=lambda i: (-scores[i], is_match[i]))
    hits, area, recall, threshold = 0, 0.0, math.nan, math.nan
    for place, index in enumerate(order, start=1):
        hits += is_match[index]
        area += is_match[index] * hits / place / 50
        if hits / place >= 0.42 and not recall >= hits / 50:
            recall, threshold = hits / 50, scores[index]
    assert retrieval.micro_average_precision(scores, is_match, 50) == pytest.approx(area, rel=1e-13)
    found = retrieval.recall_at_precision(scores, is_match, 50, min_precision=0.42)
    assert found == (recall, threshold)


def test_perfect_ranking_and_unreachable_precision():
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    good = np.array([True, True, False, False])
    assert retrieval.micro_average_precision(scores, good, 2) == 1
    assert retrieval.recall_at_precision(scores, good, 2) == (1, 3.0)
    assert all(map(math.isnan, retrieval.recall_at_precision(scores, ~good, 2)))


def test_filtered_pairs_are_deleted_and_not_merely_last():
    scores, is_match = np.array([2.0, -np.inf, 1.0]), np.array([True, True, False])
    curve = retrieval.precision_recall_curve(scores, is_match, 2)
    np.testing.assert_array_equal(curve.score, [2.0, 1.0])
    assert retrieval.micro_average_precision(scores, is_match, 2) == 0.5
    nothing = np.full(3, -np.inf)
    assert retrieval.micro_average_precision(nothing, is_match, 2) == 0
    pairs = {"query": np.zeros(3, int), "reference": np.arange(3)}
    truth = np.array([[0, 0], [0, 1]])
    assert retrieval.recall_at_rank(scores, **pairs, ground_truth=truth, rank=9) == 0.5
    assert retrieval.recall_at_rank(nothing, **pairs, ground_truth=truth, rank=9) == 0


def test_rank_agrees_with_a_plain_loop():
    rng = np.random.default_rng(11)
    pool = rng.permutation(12 * 10)[:70]
    query, reference = pool // 10, pool % 10
    scores = rng.integers(0, 4, 70).astype(float)
    # Some of these pairs were never proposed, some queries have no candidates (12 and above).
    truth = np.stack([rng.integers(0, 14, 30), rng.integers(0, 10, 30)], axis=1)
    for rank in (1, 3, 10):
        hits = 0
        for true_query, true_reference in truth:
            mine = query == true_query
            if len(own := scores[mine & (reference == true_reference)]):
                hits += np.sum(scores[mine] >= own[0]) - 1 < rank
        found = retrieval.recall_at_rank(
            scores, query=query, reference=reference, ground_truth=truth, rank=rank
        )
        assert found == hits / 30


def test_pairs_are_matched_by_identifiers_of_any_kind():
    pairs = {"query": np.array(["Q1", "Q1", "Q2"]), "reference": np.array(["R7", "R8", "R7"])}
    truth = np.array([["Q1", "R8"], ["Q9", "R7"]])
    matches = retrieval.match_ground_truth(**pairs, ground_truth=truth)
    np.testing.assert_array_equal(matches, [False, True, False])


@pytest.mark.parametrize(
    ("scores", "num_positives", "message"),
    [([1.0, np.nan], 1, "NaN"), ([1.0, 2.0], 0, "num_positives"), ([1.0], 1, "1 scores")],
)
def test_bad_candidates_are_refused(scores, num_positives, message):
    # Past the checker of annotations that the tests install, as a user without it would see.
    unchecked = retrieval.precision_recall_curve.__wrapped__
    with pytest.raises(ValueError, match=message):
        unchecked(np.array(scores), np.array([True, False]), num_positives)
