import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import sklearn.svm
from absl.testing import parameterized

from asym import similarity

# Compiled whole: one operation at a time is correct too (VariantsTest), but takes seconds a test.
cka = jax.jit(similarity.cka)
center = jax.jit(similarity.center_kernel)
coordinates_of = jax.jit(similarity.alignment_coordinates)
parallelism = jax.jit(similarity.parallelism_score, static_argnames="pairing")
scores_of = jax.jit(similarity.squared_hinge_scores, static_argnames="cost")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _kernel(seed, points, dim=5):
    z = _normal(seed, points, dim)
    return z @ z.T


def _rotation(seed, size):
    return np.linalg.qr(_normal(seed, size, size))[0]


def _cube(bits, lengths):
    """Conditions of a factorised code: one axis a bit, (bits, 2^bits)."""
    words = (np.arange(2**bits)[None] >> np.arange(bits)[:, None]) & 1
    return np.array(lengths)[:, None] * words, words


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_alignment_of_known_kernels(self, dtype):
        first, second = jnp.array([1, -1, 1, -1], dtype), jnp.array([1, 1, -1, -1], dtype)
        kernels = jnp.stack([jnp.outer(v, v) for v in (first, second)])
        both = kernels.sum(axis=0)
        found = self.variant(similarity.cka)(kernels, both)
        self.assertEqual(found.dtype, jnp.float32)
        np.testing.assert_allclose(found, [math.sqrt(0.5)] * 2, rtol=1e-6)
        np.testing.assert_allclose(self.variant(similarity.cka)(*kernels), 0, atol=1e-7)
        # A constant kernel is aligned with nothing, and no NaN comes of it.
        np.testing.assert_array_equal(
            self.variant(similarity.cka)(jnp.full((4, 4), 3, dtype), both), 0
        )

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_dimensions_of_known_points(self, dtype):
        points = jnp.array([[1, -1, 0, 0], [0, 0, 1, -1], [0, 0, 0, 0]], dtype)
        pr = self.variant(similarity.participation_ratio)
        np.testing.assert_allclose(pr(points), 2, rtol=1e-6)
        np.testing.assert_allclose(pr(points + 5), 2, rtol=1e-6)
        np.testing.assert_array_equal(pr(jnp.full((3, 4), 2, dtype)), 0)
        distances = self.variant(similarity.kernel_to_sqdist)(points.T @ points)
        self.assertEqual(distances.dtype, jnp.float32)
        np.testing.assert_allclose(distances[0], [0, 4, 2, 2], rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_dichotomies_are_in_order(self):
        found = self.variant(similarity.hadamard_dichotomies, static_argnums=0)(3)
        bits = (np.arange(8)[:, None] >> np.arange(3)) & 1
        subsets = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
        expected = np.stack([bits[:, s].sum(axis=1) % 2 for s in map(list, subsets)], axis=1)
        np.testing.assert_array_equal(found, expected)

    @chex.variants(with_jit=True, without_jit=True)
    def test_nudged_xor_of_unit_axes(self):
        found = self.variant(similarity.nudged_xor)(0.5, jnp.eye(3))
        expected = [[1, 1, -0.5], [-1, 1, 0.5], [1, -1, 0.5], [-1, -1, -0.5]]
        np.testing.assert_allclose(found, expected)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("assignment", "exhaustive")
    def test_a_factorised_cube_is_parallel(self, pairing):
        score = self.variant(lambda k, y: similarity.parallelism_score(k, y, pairing=pairing))
        points, words = _cube(3, (1.0, 3.0, 2.0))
        kernel = jnp.asarray(points.T @ points, jnp.float32)
        # Along the shortest axis the nearest partner is the parallel one.
        np.testing.assert_allclose(score(kernel, jnp.asarray(words[0])), 1, rtol=1e-5)


class TestKernels:
    def test_invariances(self, x64):
        points, other = _normal(0, 9, 6), _kernel(1, 9)
        kernel = points @ points.T
        base = cka(kernel, other)
        assert cka(other, kernel) == pytest.approx(float(base), rel=1e-12)
        moved = 7.3 * points @ _rotation(2, 6) + _normal(3, 6)
        assert cka(moved @ moved.T, other) == pytest.approx(float(base), rel=1e-12)
        assert 0 < base < 1
        # Another linear map changes it.
        skewed = points * np.array([9, 1, 1, 1, 1, 1])
        assert abs(cka(skewed @ skewed.T, other) - base) > 0.01

    def test_centred_rows_and_columns_sum_to_zero(self):
        found = center(jnp.asarray(_kernel(0, 6) + 1e4, jnp.float32))
        np.testing.assert_allclose(found.sum(axis=0), np.zeros(6), atol=5e-3)
        np.testing.assert_allclose(found, center(_kernel(0, 6)), atol=5e-3)

    @pytest.mark.parametrize("shape", [(6, 20, 30), (30, 4, 5), (10, 3, 40)])
    def test_linear_form_equals_the_kernels(self, shape, x64):
        n, d, e = shape
        x, y = _normal(0, n, d), _normal(1, n, e) + 3
        expected = cka(x @ x.T, y @ y.T)
        assert jax.jit(similarity.linear_cka)(x, y) == pytest.approx(float(expected), rel=1e-10)

    def test_unbiased_estimate_vanishes_on_average(self, x64):
        hsic = jax.jit(jax.vmap(similarity.unbiased_hsic))
        first = np.stack([_kernel(s, 8) for s in range(400)])
        second = np.stack([_kernel(s + 1000, 8) for s in range(400)])
        values = np.asarray(hsic(first, second))
        assert abs(values.mean()) < 3 * values.std() / 20
        # Of dependent ones it does not.
        own = np.asarray(hsic(first, first))
        assert own.mean() > 20 * own.std() / 20
        alike = jax.jit(similarity.unbiased_cka)(first[0], 3 * first[0])
        assert alike == pytest.approx(1, rel=1e-12)

    def test_finite_at_extremes(self):
        def of_points(z):
            k = z @ z.T
            return similarity.cka(k, jnp.eye(5)) + similarity.kernel_participation_ratio(k)

        slope = jax.jit(jax.value_and_grad(of_points))
        for scale in (0.0, 1e-9, 1e8):
            value, gradient = slope(scale * jnp.asarray(_normal(0, 5, 3), jnp.float32))
            assert np.isfinite(value)
            assert np.all(np.isfinite(gradient))

    def test_wrong_shapes(self):
        with pytest.raises(AssertionError):
            similarity.unbiased_hsic(jnp.eye(3), jnp.eye(3))


class TestAlignment:
    @pytest.mark.parametrize(("bits", "targets"), [(1, 1), (3, 3), (4, 15), (5, 1)])
    def test_the_closed_form_has_its_alignment(self, bits, targets, x64):
        n = 2**bits - 1
        largest = similarity.largest_alignment(n, targets)
        make = jax.jit(similarity.aligned_inputs, static_argnums=(0, 1))
        for c in largest * np.linspace(0, 1, 5) if n > targets else [1.0]:
            task = make(bits, targets, c)
            assert task.spectrum.sum() == pytest.approx(1, abs=1e-12)
            assert np.all(task.spectrum >= 0)
            labels = task.targets.astype(float)
            found = cka(task.inputs @ task.inputs.T, labels @ labels.T)
            assert found == pytest.approx(float(c), abs=1e-12)
            assert similarity.spectrum_alignment(task.spectrum, targets) == pytest.approx(
                float(c), abs=1e-12
            )
        # Inputs of full rank, at the largest alignment, have a flat spectrum.
        np.testing.assert_allclose(task.spectrum, 1 / n, rtol=1e-9)

    def test_dichotomies_are_orthogonal_and_balanced(self):
        signs = 2 * np.asarray(similarity.hadamard_dichotomies(4)) - 1
        np.testing.assert_array_equal(signs.T @ signs, 16 * np.eye(15))
        np.testing.assert_array_equal(signs.sum(axis=0), 0)

    def test_random_spectra_have_their_alignment(self, x64):
        def draw(key, c):
            return similarity.random_aligned_spectrum(key, 7, 2, c, scale=0.5)

        c = np.repeat([0.0, 0.1, 0.37, 0.7, 0.99], 20)
        found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 100), c)
        np.testing.assert_allclose(similarity.spectrum_alignment(found, 2), c, atol=1e-9)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
        assert found.min() >= 0
        assert np.std(found.reshape(5, 20, 7), axis=1).max(axis=1).min() > 0.005

    def test_random_kernels_have_their_alignment(self, x64):
        labels = similarity.hadamard_dichotomies(3)[:, :2].astype(float)

        def draw(key, c):
            return similarity.random_aligned_kernel(key, labels, c, max_rank=4)

        c = np.repeat([0.0, 0.3, 0.9], 20)
        found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 60), c)
        target = labels @ labels.T
        np.testing.assert_allclose(cka(found, target[None]), c, atol=1e-9)
        np.testing.assert_allclose(np.trace(found, axis1=1, axis2=2), 8, rtol=1e-9)
        np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-9)
        values = np.linalg.eigvalsh(found)
        assert values.min() > -1e-9
        # What has no alignment has left the random kernel altogether.
        ranks = (values > 1e-7).sum(axis=1)
        assert ranks[:20].max() <= 4 < ranks[20:].max() <= 6

    def test_the_bound_becomes_a_circle(self, x64):
        x, y = _kernel(0, 8), _kernel(1, 8)
        c = cka(x, y)

        def coordinates(kernel):
            return coordinates_of(
                input_alignment=cka(kernel, x), target_alignment=cka(kernel, y), alignment=c
            )

        unit = [center(k) for k in (x, y)]
        unit = [k / jnp.linalg.norm(k) for k in unit]
        for share in (0.0, 0.3, 1.0):
            mixed = coordinates(share * unit[0] + (1 - share) * unit[1])
            assert jnp.linalg.norm(mixed) == pytest.approx(1, rel=1e-12)
        assert jnp.linalg.norm(coordinates(_kernel(2, 8))) < 0.99
        # The input kernel lies towards the first axis.
        at_input, at_target = coordinates(x), coordinates(y)
        assert at_input[0] > at_input[1]
        np.testing.assert_allclose(at_input, at_target[::-1], rtol=1e-9)

    def test_what_cannot_be(self):
        with pytest.raises(ValueError, match="between 1 and 3"):
            similarity.aligned_spectrum(3, 4, 0.5)
        with pytest.raises(ValueError, match="at least one bit"):
            similarity.hadamard_dichotomies(0)
        with pytest.raises(ValueError, match="nothing to move to"):
            similarity.random_aligned_spectrum(jax.random.key(0), 3, 3, 0.5, scale=0.5)
        with pytest.raises(ValueError, match="max_rank"):
            similarity.random_aligned_kernel(jax.random.key(0), jnp.eye(4)[:, :1], 0.5, max_rank=4)
        with pytest.raises(ValueError, match="leave no direction"):
            similarity.random_aligned_kernel(jax.random.key(0), jnp.eye(4)[:, :3], 0.5, max_rank=2)


class TestParallelism:
    def test_against_all_pairings(self, x64):
        for seed in range(3):
            points, labels = _normal(seed, 4, 6), np.array([0, 1, 1, 0, 0, 1])
            kernel = points.T @ points
            positive, negative = points[:, labels == 1], points[:, labels == 0]
            found = parallelism(kernel, jnp.asarray(labels), pairing="assignment")
            costs = ((positive[:, :, None] - negative[:, None]) ** 2).sum(axis=0)
            _, order = scipy.optimize.linear_sum_assignment(costs)
            difference = positive - negative[:, order]
            difference /= np.linalg.norm(difference, axis=0)
            expected = (difference.T @ difference)[~np.eye(3, dtype=bool)].mean()
            assert found == pytest.approx(expected, rel=1e-9)
            best = parallelism(kernel, jnp.asarray(labels), pairing="exhaustive")
            assert best >= found - 1e-12

    def test_roles_of_the_labels_may_be_exchanged(self, x64):
        kernel, labels = _kernel(0, 8), jnp.array([0, 1, 1, 0, 1, 0, 0, 1])
        for pairing in ("assignment", "exhaustive"):
            one, other = (parallelism(kernel, y, pairing=pairing) for y in (labels, 1 - labels))
            assert one == pytest.approx(float(other), rel=1e-9)

    def test_equal_points_give_no_nan(self):
        assert parallelism(jnp.zeros((4, 4)), jnp.array([0, 0, 1, 1])) == 0

    def test_what_cannot_be_paired(self):
        with pytest.raises(ValueError, match="no two pairs"):
            similarity.parallelism_score(jnp.eye(5), jnp.arange(5))
        with pytest.raises(ValueError, match="exhaustive pairing"):
            similarity.parallelism_score(jnp.eye(10), jnp.arange(10) % 2, pairing="exhaustive")


class TestReadouts:
    def test_the_classifier_is_that_of_liblinear(self, x64):
        for seed, cost in ((0, 1.0), (1, 0.1), (2, 10.0)):
            points, signs = _normal(seed, 40, 6), np.sign(_normal(seed + 9, 40))
            training = np.arange(40) < 30
            found = scores_of(points @ points.T, signs, training, cost=cost)
            reference = sklearn.svm.LinearSVC(C=cost, dual=False, tol=1e-10, max_iter=10_000)
            reference.fit(points[training], signs[training])
            np.testing.assert_allclose(found, reference.decision_function(points), atol=1e-5)

    def test_single_precision_finds_the_same(self):
        points, signs = 30 * _normal(0, 60, 100), np.sign(_normal(1, 60))
        training = np.arange(60) < 40
        kernel = points @ points.T
        single = scores_of(jnp.asarray(kernel, jnp.float32), signs, training)
        with jax.enable_x64(True):
            double = scores_of(kernel, signs, training)
        np.testing.assert_allclose(single, double, atol=2e-3)

    def test_a_cube_generalises_and_parity_does_not(self):
        points, words = _cube(3, (2.0, 2.0, 2.0))
        condition = np.repeat(np.arange(8), 5)
        noisy = points[:, condition] + 0.1 * _normal(0, 3, 40)
        trained = np.array([[0, 1, 2, 3], [0, 3, 4, 7], [0, 1, 6, 7]])
        ccgp = jax.jit(similarity.ccgp)
        bit, parity = words[0][condition], (words.sum(axis=0) % 2)[condition]
        np.testing.assert_array_equal(ccgp(noisy, condition, bit, trained), 1)
        assert ccgp(noisy, condition, parity, trained).mean() < 0.6

    def test_shattering_counts_what_planes_can_part(self):
        points, words = _cube(2, (2.0, 2.0))
        condition = np.tile(np.arange(4), 20)
        training = np.arange(80) < 40
        dichotomies = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])
        noisy = points[:, condition] + 0.05 * _normal(0, 2, 80)
        shatter = jax.jit(similarity.shattering_dimension)
        found = shatter(noisy, condition, dichotomies, training)
        np.testing.assert_array_equal(found[:2], 1)
        assert found[2] < 0.8
        lifted = np.concatenate([noisy, 2.0 * (words.sum(axis=0) % 2)[None, condition]])
        np.testing.assert_array_equal(shatter(lifted, condition, dichotomies, training), 1)
