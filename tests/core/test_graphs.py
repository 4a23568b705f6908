import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import graphs

# A path 0 - 1 - 2 - 3 with a branch 4 at node 1.
EDGES = ((0, 1), (1, 2), (3, 2), (1, 4))
NODES = 5


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _edges():
    return jnp.asarray(EDGES)


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _adjacency(strategy="spatial", center=1, max_hop=1):
    return graphs.skeleton_adjacency(
        _edges(), num_nodes=NODES, center=center, strategy=strategy, max_hop=max_hop
    )


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_distances_are_cut_off(self):
        found = self.variant(lambda e: graphs.hop_distance(e, num_nodes=NODES, max_hop=2))(_edges())
        inf = np.inf
        expected = [
            [0, 1, 2, inf, 2],
            [1, 0, 1, 2, 1],
            [2, 1, 0, 1, 2],
            [inf, 2, 1, 0, inf],
            [2, 1, 2, inf, 0],
        ]
        np.testing.assert_array_equal(found, expected)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_convolution_of_known_numbers(self, dtype):
        # Two nodes, one subset: node 0 is read with weight 1 by itself and with 2 by node 1.
        found = self.variant(graphs.graph_conv)(
            jnp.array([[[1.0]], [[10.0]]], dtype),
            kernel=jnp.array([[[3.0, -1.0]]], dtype),
            bias=jnp.array([[0.5, 0.0]], dtype),
            adjacency=jnp.array([[[1.0, 2.0], [0.0, 4.0]]], dtype),
        )
        self.assertEqual(found.dtype, dtype)
        expected = [[[3.5, -1.0]], [[2 * 3.5 + 4 * 30.5, -42.0]]]
        np.testing.assert_array_equal(found.astype(jnp.float32), expected)


@pytest.mark.parametrize("max_hop", [1, 2, 3])
@pytest.mark.parametrize(("strategy", "extra"), [("uniform", 0), ("distance", 1), ("spatial", 2)])
def test_subsets_part_the_normalised_adjacency(strategy, extra, max_hop):
    found = np.asarray(_adjacency(strategy, 1, max_hop))
    assert found.shape == (1 + extra * max_hop, NODES, NODES)
    # Each entry is in one subset at most, and what a node reads has total weight 1.
    assert np.max(np.sum(found != 0, axis=0)) == 1
    np.testing.assert_allclose(found.sum(axis=(0, 1)), np.ones(NODES), rtol=1e-6)


def test_spatial_subsets_tell_towards_the_centre_from_away():
    itself, away, towards = np.asarray(_adjacency())
    np.testing.assert_allclose(np.diag(itself), [1 / 2, 1 / 4, 1 / 3, 1 / 2, 1 / 2], rtol=1e-6)
    assert np.count_nonzero(itself) == NODES
    # Node 3 is two edges away: infinitely far, and so farther than node 2.
    assert set(zip(*np.nonzero(towards), strict=True)) == {(1, 0), (1, 2), (1, 4), (2, 3)}
    assert set(zip(*np.nonzero(away), strict=True)) == {(0, 1), (2, 1), (4, 1), (3, 2)}


def test_distances_beyond_the_last_hop_count_as_equal():
    # Seen from node 0, both ends of the edge 2 - 3 are infinitely far: neither is nearer.
    _, away, towards = np.asarray(_adjacency("spatial", 0))
    assert away[2, 3] > 0 and away[3, 2] > 0
    assert towards[2, 3] == towards[3, 2] == 0
    # With longer distances node 2 is nearer, and the entry read from it changes its subset.
    _, away, towards, *_ = np.asarray(_adjacency("spatial", 0, 3))
    assert towards[2, 3] > 0 and away[2, 3] == 0
    assert away[3, 2] > 0 and towards[3, 2] == 0


def test_loops_repetitions_and_orientation_of_edges_do_not_matter():
    messy = jnp.asarray([(1, 0), *EDGES, (3, 3), (0, 1)])
    found = graphs.skeleton_adjacency(messy, num_nodes=NODES, center=1)
    np.testing.assert_array_equal(found, _adjacency())


def test_unknown_strategy_is_refused():
    unchecked = graphs.skeleton_adjacency.__wrapped__
    with pytest.raises(ValueError, match="radial"):
        unchecked(_edges(), num_nodes=NODES, center=0, strategy="radial")


@pytest.mark.parametrize(("channels", "features"), [(2, 6), (6, 2)])
def test_convolution_is_its_sum(x64, channels, features):
    x, kernel = _normal(0, NODES, 3, 4, channels), _normal(1, 3, channels, features)
    bias, adjacency = _normal(2, 3, features), _normal(3, 3, NODES, NODES)
    found = jax.jit(graphs.graph_conv)(x, kernel=kernel, bias=bias, adjacency=adjacency)
    x, kernel, bias, adjacency = map(np.asarray, (x, kernel, bias, adjacency))
    expected = np.zeros((NODES, 3, 4, features))
    for k in range(3):
        for read in range(NODES):
            for written in range(NODES):
                expected[written] += adjacency[k, read, written] * (x[read] @ kernel[k] + bias[k])
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_convolution_needs_no_axis_between_nodes_and_channels():
    x, kernel, bias = jnp.ones((NODES, 2)), jnp.ones((3, 2, 1)), jnp.zeros((3, 1))
    found = graphs.graph_conv(x, kernel=kernel, bias=bias, adjacency=_adjacency())
    np.testing.assert_allclose(found, np.full((NODES, 1), 2.0), rtol=1e-6)


def test_dropped_edges_keep_the_expectation_or_the_total():
    adjacency = _adjacency()
    keep = jnp.ones_like(adjacency, bool).at[1, 0, 1].set(False)
    found = graphs.drop_edges(adjacency, keep=keep, rate=0.2)
    assert found[1, 0, 1] == 0
    np.testing.assert_allclose(found[1, 2, 1], adjacency[1, 2, 1] / 0.8, rtol=1e-6)
    found = graphs.drop_edges(adjacency, keep=keep, rate=jnp.asarray(0.2), rescale=True)
    np.testing.assert_allclose(jnp.sum(found), jnp.sum(adjacency), rtol=1e-6)


def test_dropping_everything_is_finite():
    def total(adjacency):
        none = jnp.zeros_like(adjacency, bool)
        return jnp.sum(graphs.drop_edges(adjacency, keep=none, rate=0.5, rescale=True))

    value, gradient = jax.jit(jax.value_and_grad(total))(_adjacency())
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_added_edges_keep_the_total_and_spare_the_old_ones(dtype):
    adjacency = _adjacency().astype(dtype)
    added = jnp.zeros_like(adjacency, bool).at[0, 0, 1].set(True).at[0, 0, 0].set(True)
    found = graphs.add_edges(adjacency, added=added)
    assert found.dtype == dtype
    # The total is 5, one entry per column: of the two candidates only one was 0.
    np.testing.assert_allclose(found[0, 0, 1].astype(jnp.float32), 5 / 6, rtol=4e-3)
    np.testing.assert_allclose(found[0, 0, 0].astype(jnp.float32), 0.5 * 5 / 6, rtol=4e-3)
    np.testing.assert_allclose(jnp.sum(found.astype(jnp.float32)), 5, rtol=4e-3)


def test_adding_to_an_empty_graph_is_finite():
    empty = jnp.zeros((1, 3, 3))
    everything = jnp.ones_like(empty, bool)
    slope = jax.jit(jax.grad(lambda a: jnp.sum(graphs.add_edges(a, added=everything))))
    assert np.all(np.isfinite(slope(empty)))


def test_vmap_over_seeds_equals_one_by_one():
    x, kernel, bias = _normal(4, 3, NODES, 6, 2), _normal(5, 3, 3, 2, 4), _normal(6, 3, 3, 4)
    adjacency = _adjacency()

    def conv(x, kernel, bias):
        return graphs.graph_conv(x, kernel=kernel, bias=bias, adjacency=adjacency)

    found, one = jax.jit(jax.vmap(conv))(x, kernel, bias), jax.jit(conv)
    expected = [one(*seed) for seed in zip(x, kernel, bias, strict=True)]
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-5, atol=1e-6)
