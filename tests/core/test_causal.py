"""Linear systems, learning their graphs, and how sure the estimates are."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
from absl.testing import parameterized

from asym import causal

# Programs that run once: making them takes longest, and less so unoptimised.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _weights(seed, nodes):
    """Weights of a random graph whose order is that of the nodes, for use outside of jax too."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.5, 2, (nodes, nodes)) * rng.choice([-1, 1], (nodes, nodes))
    return np.triu(size * rng.integers(0, 2, (nodes, nodes)), 1)


def _play(seed, observational, interventional, horizon):
    """Random actions and what is seen under them, one at a time."""
    rng = np.random.default_rng(seed)
    nodes = len(observational)
    actions = rng.integers(0, 2, (nodes, horizon))
    seen = np.zeros((nodes, horizon))
    for t in range(horizon):
        for n in range(nodes):
            column = (interventional if actions[n, t] else observational)[:, n]
            seen[n, t] = column @ seen[:, t] + 1 + rng.normal()
    return seen, actions


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_a_chain(self, dtype):
        # 0 -> 1 (2), 1 -> 2 (3), 0 -> 2 (-1); the intervention on node 2 turns its column round.
        weights = jnp.array([[0, 2, -1], [0, 0, 3], [0, 0, 0]], dtype)
        turned = weights * jnp.array([1, 1, -1], dtype)
        flow = self.variant(causal.flow_matrix)(weights)
        np.testing.assert_allclose(flow, [[1, 2, 5], [0, 1, 3], [0, 0, 1]], atol=1e-6)
        self.assertEqual(flow.dtype, jnp.float32)
        mean = self.variant(causal.mean_response)(weights, jnp.ones(3, dtype))
        np.testing.assert_allclose(mean, [1, 3, 9], rtol=1e-6)
        rewards = self.variant(causal.expected_reward)(
            observational=weights,
            interventional=turned,
            noise_mean=jnp.ones(3, dtype),
            actions=jnp.array([[1, 1, 0], [0, 1, 1]]),
        )
        np.testing.assert_allclose(rewards, [9, -7], rtol=1e-6)
        seen = self.variant(causal.sample)(weights, jnp.array([[1, 0], [0, 1], [0, 0]], dtype))
        np.testing.assert_allclose(seen, [[1, 0], [2, 1], [5, 3]], atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_columns_follow_their_bits(self):
        found = self.variant(causal.post_intervention)(
            observational=jnp.zeros((3, 3)),
            interventional=jnp.ones((3, 3)),
            action=jnp.array([0, 1, 1]),
        )
        np.testing.assert_array_equal(found, [[0, 1, 1]] * 3)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_scores_of_edges(self, dtype):
        dependence = jnp.array([0.5, 0.5, -0.25, 0.0], dtype)
        weights = jnp.array([1.0, -0.125, 4.0, 0.0], dtype)
        score = self.variant(causal.edge_score)
        found = score(mutual_information=dependence, weight_hat=weights)
        self.assertEqual(found.dtype, jnp.float32)
        expected = [0.5, 0.5 + math.log(8), -0.25 - math.log(4), np.inf]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        plain = score(mutual_information=dependence, weight_hat=weights, log_weight=0.0)
        np.testing.assert_array_equal(plain, dependence.astype(jnp.float32))

    @chex.variants(with_jit=True, without_jit=True)
    def test_graphs_with_and_without_cycles(self):
        is_dag = self.variant(causal.is_dag)
        for nodes in (1, 2, 3, 5, 8):
            ring = np.roll(np.eye(nodes, dtype=bool), 1, axis=1)
            self.assertFalse(is_dag(jnp.asarray(ring)))
            self.assertTrue(is_dag(jnp.triu(jnp.ones((nodes, nodes), bool), 1)))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_change_of_known_residuals(self, dtype):
        # Mean 3 and deviation 1 where the noise has deviation 2; and a constant window.
        residuals = jnp.array([[2, 4, 2, 4], [0, 0, 0, 0]], dtype)
        found = self.variant(causal.column_change_stat)(
            residuals, noise_scale=jnp.array([2.0, 1.0])
        )
        np.testing.assert_allclose(found[0], math.log(2) + 0.5 * 10 / 4 - 0.5, rtol=1e-5)
        # As little spread as is counted; finite, and certainly a change.
        np.testing.assert_allclose(found[1], 12 * math.log(10), rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_annealing(self):
        anneal = self.variant(causal.cosine_anneal)
        for time, expected in ((200, 1.0), (400, 0.75), (500, 0.5), (800, 0.0)):
            found = anneal(time=jnp.array(time), start=200, horizon=800)
            np.testing.assert_allclose(found, expected, atol=1e-6)
        self.assertEqual(anneal(time=800, start=800, horizon=800), 0)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_weight_of_a_two_cycle(self, dtype):
        # Squares 4 and 1: eigenvalues of the squares are 2 and -2.
        cycle = jnp.array([[0, 2], [1, 0]], dtype)
        found = self.variant(causal.acyclicity)(cycle)
        self.assertEqual(found.dtype, jnp.float32)
        np.testing.assert_allclose(found, 2 * math.cosh(2) - 2, rtol=1e-5)
        self.assertEqual(self.variant(causal.acyclicity)(jnp.triu(cycle)), 0)


def test_actions_count_in_binary():
    assert [tuple(row) for row in causal.all_actions(3).tolist()] == list(
        itertools.product((0, 1), repeat=3)
    )


@pytest.mark.parametrize("nodes", [2, 4, 6])
def test_rewards_are_sums_over_paths(x64, nodes):
    observational, interventional = _weights(nodes, nodes), _weights(nodes + 10, nodes)
    noise_mean = np.random.default_rng(0).normal(size=nodes)
    actions = causal.all_actions(nodes)
    expected = []
    for action in np.asarray(actions):
        chosen = np.where(action == 1, interventional, observational)
        paths = sum(np.linalg.matrix_power(chosen.T, length) for length in range(nodes))
        expected.append((paths @ noise_mean)[-1])
    for function in (causal.expected_reward, causal.path_sum_reward):
        found = _jit(function)(
            observational=observational,
            interventional=interventional,
            noise_mean=noise_mean,
            actions=actions,
        )
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_samples_solve_their_equations(x64):
    weights = _weights(3, 5)
    noise = np.random.default_rng(1).normal(size=(5, 7))
    seen = _jit(causal.sample)(weights, noise)
    np.testing.assert_allclose(seen, weights.T @ seen + noise, rtol=1e-12)
    gradient = _jit(jax.grad(lambda w, e: causal.sample(w, e).sum()))(weights, noise)
    flow = np.linalg.inv(np.eye(5) - weights)
    expected = np.outer(seen.sum(axis=1), flow.sum(axis=1))
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)


_select = _jit(causal.select_samples, static_argnames="capacity")


@pytest.mark.parametrize("capacity", [3, 100])
def test_samples_are_the_first_ones_of_their_column(capacity):
    seen, actions = _play(0, _weights(1, 4), _weights(2, 4), 40)
    actions[:, 30:] = -1
    start = np.random.default_rng(2).integers(0, 20, (2, 4))
    values, mask = _select(observations=seen, actions=actions, start=start, capacity=capacity)
    assert values.shape == (2, 4, 4, min(capacity, 40))
    for bit, node in itertools.product(range(2), range(4)):
        wanted = [t for t in range(start[bit, node], 30) if actions[node, t] == bit][:capacity]
        assert mask[bit, node].sum() == len(wanted)
        np.testing.assert_array_equal(mask[bit, node][: len(wanted)], True)
        found = values[bit, node][:, : len(wanted)]
        np.testing.assert_array_equal(found, seen[:, wanted].astype(np.float32))
        assert np.all(values[bit, node][:, len(wanted) :] == 0)


def _ksg(x, y, k):
    """The estimate by sorting, for samples without ties."""
    near_x, near_y = abs(x[:, None] - x), abs(y[:, None] - y)
    distance = np.maximum(near_x, near_y) + np.diag(np.full(len(x), np.inf))
    terms = []
    for i, order in enumerate(np.argsort(distance, axis=1)):
        neighbours = order[:k]
        terms += [np.sum(near[i] <= near[i, neighbours].max()) - 1 for near in (near_x, near_y)]
    psi = scipy.special.digamma
    return psi(k) - 1 / k - 2 * np.mean(psi(terms)) + psi(len(x))


_information = _jit(causal.ksg_mutual_information, static_argnames="k")


@pytest.mark.parametrize("k", [1, 5])
def test_information_by_sorting(x64, k):
    x, y = np.random.default_rng(k).normal(size=(2, 60))
    y += 2 * x
    np.testing.assert_allclose(_information(x, y, k=k), _ksg(x, y, k), rtol=1e-12)
    np.testing.assert_allclose(_information(y, x, k=k), _ksg(x, y, k), rtol=1e-12)
    np.testing.assert_allclose(_information(2 * x + 1, 2 * y, k=k), _ksg(x, y, k), rtol=1e-12)


def test_information_of_gaussians():
    # The estimator's own spread at this size, over seeds, is about 0.03.
    rng = np.random.default_rng(5)
    for correlation in (0.0, 0.5, 0.9):
        x, noise = rng.normal(size=(2, 1000))
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        found = _information(x.astype(np.float32), y.astype(np.float32))
        assert abs(found + 0.5 * math.log(1 - correlation**2)) < 0.1


def test_information_of_some_samples(x64):
    x, y = np.random.default_rng(6).normal(size=(2, 60))
    mask = np.random.default_rng(7).random(60) < 0.6
    found = _information(np.where(mask, x, np.nan), np.where(mask, y, 1e300), mask=mask)
    np.testing.assert_allclose(found, _ksg(x[mask], y[mask], 5), rtol=1e-12)


def test_information_of_extremes():
    few = np.arange(30) < 5
    x, y = np.random.default_rng(8).normal(size=(2, 30)).astype(np.float32)
    assert _information(x, y, mask=few) == 0
    assert _information(x, y, mask=np.zeros(30, bool)) == 0
    # All at one point: everything is a neighbour in both.
    psi = scipy.special.digamma
    expected = psi(5) - 0.2 - 2 * psi(29) + psi(30)
    np.testing.assert_allclose(_information(0 * x, 0 * y), expected, rtol=1e-5)
    assert np.isfinite(_information(1e30 * x, 1e-30 * y))
    slope = _jit(jax.grad(causal.ksg_mutual_information))(x, y)
    assert np.all(slope == 0)


_ols = _jit(causal.ols_masked)


def test_least_squares(x64):
    rng = np.random.default_rng(9)
    covariates, response = rng.normal(size=(5, 30)), rng.normal(size=30)
    parents, kept = np.array([1, 0, 1, 1, 0], bool), rng.random(30) < 0.7
    found = _ols(covariates, response, parent_mask=parents, sample_mask=kept)
    expected = np.linalg.lstsq(covariates[parents][:, kept].T, response[kept])[0]
    np.testing.assert_allclose(found[parents], expected, rtol=1e-10)
    assert np.all(found[~parents] == 0)
    total = _jit(
        jax.grad(lambda c, y, p, m: causal.ols_masked(c, y, parent_mask=p, sample_mask=m)[0])
    )
    gradient = total(covariates, response, parents, kept)
    assert np.all(np.isfinite(gradient))


def test_least_squares_with_too_few_samples(x64):
    # Of all weights that fit, the shortest; the one of a covariate that repeats is shared.
    rng = np.random.default_rng(10)
    covariates = rng.normal(size=(4, 3))
    covariates[3] = covariates[0]
    response, everything = rng.normal(size=3), np.ones(4, bool)
    found = _ols(covariates, response, parent_mask=everything, sample_mask=np.arange(3) < 2)
    expected = np.linalg.pinv(covariates[:, :2].T) @ response[:2]
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    nothing = _ols(covariates, response, parent_mask=everything, sample_mask=np.zeros(3, bool))
    assert np.all(nothing == 0)


def test_slope_of_the_score():
    def total(weights):
        scores = causal.edge_score(mutual_information=jnp.zeros(2), weight_hat=weights)
        return jnp.sum(jnp.where(jnp.isfinite(scores), scores, 0))

    np.testing.assert_allclose(_jit(jax.grad(total))(jnp.array([0.0, -0.5])), [0, 2])


def test_cycles_are_those_that_networkx_finds():
    is_dag = _jit(jax.vmap(causal.is_dag))
    for nodes in (4, 7):
        graphs = np.random.default_rng(nodes).random((200, nodes, nodes)) < 0.9 / nodes
        expected = [nx.is_directed_acyclic_graph(nx.DiGraph(graph)) for graph in graphs]
        assert 20 < sum(expected) < 180
        assert is_dag(graphs).tolist() == expected


_prune = _jit(causal.prune_to_dag)


@pytest.fixture(scope="module")
def learnt():
    """A system of four nodes, its samples, and the two graphs learnt from them."""
    true = np.stack([_weights(5, 4), _weights(8, 4)])
    assert np.all((true != 0).any(axis=(1, 2)))
    with jax.enable_x64(True):
        seen, actions = _play(3, *true, 200)
        samples = _select(
            observations=seen, actions=actions, start=np.zeros((2, 4), int), capacity=100
        )
        graphs = [_prune(*one, noise_mean=np.ones(4)) for one in zip(*samples, strict=True)]
    return true, samples, np.stack(graphs)


def test_no_edge_is_missed_and_the_graph_is_acyclic(learnt):
    true, _, graphs = learnt
    assert not np.any((true != 0) & ~graphs)
    assert all(nx.is_directed_acyclic_graph(nx.DiGraph(graph)) for graph in graphs)
    # Pruning stops at the first acyclic graph, which misses few of the six possible edges.
    assert np.all(graphs.sum(axis=(1, 2)) >= (true != 0).sum(axis=(1, 2)))


def test_weights_of_the_learnt_graph(x64, learnt):
    true, samples, graphs = learnt
    estimate = _jit(causal.estimate_weights)
    for value in range(2):
        found = estimate(
            samples.values[value],
            samples.mask[value],
            adjacency=graphs[value],
            noise_mean=np.ones(4),
        )
        assert np.all(found[~graphs[value]] == 0)
        for column in range(4):
            chosen, kept = graphs[value][:, column], np.asarray(samples.mask[value, column])
            data = np.asarray(samples.values[value, column])[:, kept]
            expected = np.linalg.lstsq(data[chosen].T, data[column] - 1)[0]
            np.testing.assert_allclose(found[chosen, column], expected, rtol=1e-9)
        # About 100 samples a column, noise 1, and covariates of deviation 1 or more.
        np.testing.assert_allclose(found, true[value], atol=0.5)


def test_a_graph_from_nothing_is_acyclic(x64):
    shape = 3, 3, 20
    for values in (np.zeros(shape), np.ones(shape), 1e150 * np.ones(shape)):
        for mask in (np.zeros((3, 20), bool), np.ones((3, 20), bool)):
            assert nx.is_directed_acyclic_graph(
                nx.DiGraph(np.asarray(_prune(values, mask, noise_mean=np.ones(3))))
            )


def test_error_variance(x64):
    rng = np.random.default_rng(11)
    covariates, kept = rng.normal(size=(4, 25)), rng.random(25) < 0.8
    parents = np.array([1, 1, 0, 1], bool)
    variance = _jit(causal.column_error_variance)
    found = variance(covariates, parent_mask=parents, sample_mask=kept, noise_scale=3.0)
    gram = covariates[parents][:, kept] @ covariates[parents][:, kept].T
    np.testing.assert_allclose(found, 9 / np.linalg.eigvalsh(gram)[0], rtol=1e-10)
    assert variance(covariates, parent_mask=np.zeros(4, bool), sample_mask=kept) == 0
    undetermined = variance(covariates, parent_mask=parents, sample_mask=np.arange(25) < 2)
    assert 1e6 < undetermined < np.inf


def test_width(x64):
    weights, noise_mean = _weights(12, 5), np.random.default_rng(12).normal(size=5)
    variance = np.random.default_rng(13).exponential(size=5)
    width = _jit(causal.ucb_width, static_argnames="form")

    def formula(count):
        flow = np.linalg.inv(np.eye(5) - weights)
        spread = np.sum(np.sqrt(count * (count + 2)) * variance)
        lengths = np.linalg.norm(flow[:, -1]) * np.linalg.norm(flow.T @ noise_mean)
        return lengths * np.sqrt(4 * math.log(2 * 5 / 0.1) * spread)

    given = {"noise_mean": noise_mean, "error_variance": variance, "delta": 0.1}
    code, theorem = (width(weights, **given, form=form) for form in ("code", "theorem"))
    np.testing.assert_allclose(code, formula((weights != 0).sum(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(theorem, formula(np.full(5, 5)), rtol=1e-12)
    assert code < theorem
    quarter = given | {"error_variance": variance / 4}
    np.testing.assert_allclose(width(weights, **quarter), code / 2, rtol=1e-12)


def test_width_without_doubt_is_zero():
    def width(variance):
        return causal.ucb_width(jnp.zeros((3, 3)), noise_mean=jnp.ones(3), error_variance=variance)

    value, slope = _jit(jax.value_and_grad(width))(jnp.zeros(3))
    assert value == 0
    assert np.all(np.isfinite(slope))


def test_change_of_a_column_is_a_ratio_of_likelihoods(x64):
    residuals = 0.3 + 1.4 * np.random.default_rng(14).normal(size=20)
    found = _jit(causal.column_change_stat)(residuals, noise_scale=0.8)
    fitted = scipy.stats.norm(residuals.mean(), residuals.std())
    known = scipy.stats.norm(0, 0.8)
    expected = np.mean(fitted.logpdf(residuals) - known.logpdf(residuals))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_change_of_a_graph_is_a_ratio_of_likelihoods(x64):
    rng = np.random.default_rng(15)
    weights, noise_mean = _weights(15, 3), rng.normal(size=3)
    covariance = np.diag(rng.uniform(0.5, 2, 3))
    seen = rng.normal(size=(3, 20))
    found = _jit(causal.graph_change_stat)(
        seen, weights=weights, noise_mean=noise_mean, noise_covariance=covariance
    )
    flow = np.linalg.inv(np.eye(3) - weights)
    normal = scipy.stats.multivariate_normal
    known = normal(flow.T @ noise_mean, flow.T @ covariance @ flow).logpdf(seen.T)
    fitted = normal(seen.mean(axis=1), np.cov(seen)).logpdf(seen.T)
    np.testing.assert_allclose(found, np.sum(fitted - known) / (20 * 3), rtol=1e-10)


def test_acyclicity_is_the_trace_of_an_exponential(x64):
    for scale in (0.3, 1.0, 2.0):
        weights = scale * np.random.default_rng(16).normal(size=(5, 5))
        value, slope = _jit(jax.value_and_grad(causal.acyclicity))(weights)
        exponential = scipy.linalg.expm(weights**2)
        np.testing.assert_allclose(value, np.trace(exponential) - 5, rtol=1e-7)
        np.testing.assert_allclose(slope, 2 * exponential.T * weights, rtol=1e-7)


def test_objectives(x64):
    rng = np.random.default_rng(17)
    weights, seen = rng.normal(size=(4, 4)), rng.normal(size=(4, 30))
    np.fill_diagonal(weights, 0)
    squares = np.sum((seen - weights.T @ seen) ** 2)
    size, cycles = np.abs(weights).sum(), np.trace(scipy.linalg.expm(weights**2)) - 4
    found = _jit(causal.golem_objective)(weights, gram=seen @ seen.T, sparsity=0.02, acyclic=5.0)
    volume = math.log(abs(np.linalg.det(np.eye(4) - weights)))
    expected = 2 * math.log(squares) - volume + 0.02 * size + 5 * cycles
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    found = _jit(causal.notears_objective)(
        weights, gram=seen @ seen.T, samples=30, sparsity=0.1, multiplier=0.5, penalty=4.0
    )
    expected = squares / 60 + 0.1 * size + 0.5 * cycles + 2 * cycles**2
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_likelihood_is_best_at_the_true_weights(x64):
    # The gradient of the expected likelihood vanishes at the truth where the variances are equal.
    weights = _weights(18, 4)
    flow = np.linalg.inv(np.eye(4) - weights)
    slope = _jit(jax.grad(functools.partial(causal.golem_objective, sparsity=0.0, acyclic=0.0)))(
        weights, gram=flow.T @ flow
    )
    np.testing.assert_allclose(slope, 0, atol=1e-10)


def test_the_smallest_edges_go_until_no_cycle_is_left():
    weights = jnp.array([[9.0, 0.2, 0.0], [0.0, 0.0, -0.5], [0.8, 0.6, 0.0]])
    cut = _jit(causal.threshold_to_dag)
    np.testing.assert_array_equal(
        cut(weights, threshold=0.3), jnp.array([[0, 0, 0], [0, 0, 0], [0.8, 0.6, 0]])
    )
    # Without a threshold 0.2 goes as the smallest of all, then -0.5, which closes a cycle.
    np.testing.assert_array_equal(
        cut(weights, threshold=0.0), jnp.array([[0, 0, 0], [0, 0, 0], [0.8, 0.6, 0]])
    )
    assert not np.any(cut(weights, threshold=10.0))


@pytest.mark.parametrize("bad", [(2, 3), (3, 2)])
def test_matrices_must_be_square(bad):
    for function in (causal.flow_matrix, causal.acyclicity, causal.is_dag):
        with pytest.raises(AssertionError):
            function(jnp.zeros(bad, bool if function is causal.is_dag else float))
