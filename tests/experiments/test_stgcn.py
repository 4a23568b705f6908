import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asym import graphs
from experiments.common.nets import stgcn

JOINTS = 4
# A star: joint 0 in the middle.
EDGES = ((1, 0), (2, 0), (3, 0))


# One block without a shortcut and one with a projected one.
BLOCKS = (stgcn.BlockSpec(4), stgcn.BlockSpec(6, 2))


def _adjacency():
    return graphs.skeleton_adjacency(jnp.asarray(EDGES), num_nodes=JOINTS, center=0)


@functools.cache
def _built(seed, blocks, dtype):
    with jax.default_prng_impl("rbg"):
        return nnx.split(stgcn.STGCN(_adjacency(), blocks, dtype=dtype, rngs=nnx.Rngs(seed)))


def _key(seed):
    # The default generator takes longer to compile than these networks.
    return jax.random.key(seed, impl="rbg")


def _model(seed=0, blocks=BLOCKS, dtype=None):
    return nnx.merge(*_built(seed, blocks, dtype), copy=True)


def _clips(seed=0, batch=3, frames=10, persons=1):
    shape = (batch, 3, frames, JOINTS, persons)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@nnx.jit
def _run(model, x):
    return model(x)


def _convolution(frames, stride, taps=3):
    layer = stgcn.TemporalConv(2, 5, taps=taps, stride=stride, dtype=None, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(5.0)
    x = np.random.default_rng(1).normal(size=(JOINTS, 2, frames, 2)).astype(np.float32)
    return layer, jnp.asarray(x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 11])
def test_convolution_over_time_is_its_sum(frames, stride):
    layer, x = _convolution(frames, stride)
    found = nnx.jit(lambda layer, x: layer(x))(layer, x)
    kernel, padded = np.asarray(layer.kernel[...]), np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    expected = np.stack(
        [
            np.einsum("vbkc,kcd->vbd", padded[:, :, start : start + 3], kernel) + np.arange(5)
            for start in range(0, frames, stride)
        ],
        axis=2,
    )
    assert found.shape == (JOINTS, 2, -(-frames // stride), 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# Both sides of the length at which the kernel's gradient is computed otherwise.
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (5, 3)])
@pytest.mark.parametrize("frames", [2, 9, 16])
def test_gradients_of_the_convolution_are_those_of_its_sum(frames, taps, stride):
    layer, x = _convolution(frames, stride, taps)
    outputs = -(-frames // stride)
    pull = np.random.default_rng(2).normal(size=(JOINTS, 2, outputs, 5)).astype(np.float32)

    def as_layer(x, layer):
        return jnp.sum(layer(x) * pull)

    def as_sum(x, kernel):
        padded = jnp.pad(x, ((0, 0), (0, 0), (taps // 2, taps // 2), (0, 0)))
        windows = jnp.arange(0, frames, stride)[:, None] + jnp.arange(taps)
        return jnp.einsum("vbokc,kcd,vbod->", padded[:, :, windows], kernel, pull)

    of_x, of_layer = nnx.jit(nnx.grad(as_layer, argnums=(0, 1)))(x, layer)
    expected_x, expected_kernel = jax.jit(jax.grad(as_sum, (0, 1)))(x, layer.kernel[...])
    np.testing.assert_allclose(of_x, expected_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_layer.kernel[...], expected_kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_layer.bias[...], np.sum(pull, (0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_widths_and_strides_of_the_two_encoders():
    ten = stgcn.ten_blocks(16, 256, 0.5)
    assert [spec.width for spec in ten] == [16] * 4 + [32] * 3 + [64] * 2 + [256]
    assert [index for index, spec in enumerate(ten) if spec.stride == 2] == [4, 7]
    assert [spec.dropout for spec in ten] == [0.0] + [0.5] * 9
    assert stgcn.three_blocks() == ((16, 1, 0.0), (32, 2, 0.0), (64, 2, 0.0))


def test_half_precision_computes_nearly_the_same():
    wide, half = _model(), _model(dtype=jnp.bfloat16)
    found, expected = _run(half, _clips()), _run(wide, _clips())
    assert found.shape == (3, wide.feature_dim) == (3, 6)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.05 * np.abs(expected).max())
    assert half.blocks[0].kernel.dtype == jnp.float32
    assert _run(wide, _clips().astype(jnp.bfloat16)).dtype == jnp.float32


def test_state_is_parameters_statistics_and_the_graph():
    _, parameters, statistics, buffers = nnx.split(_model(), nnx.Param, nnx.BatchStat, stgcn.Buffer)
    (graph,) = jax.tree.leaves(buffers)
    np.testing.assert_array_equal(graph, _adjacency())
    importances = [leaf for leaf in jax.tree.leaves(parameters) if leaf.shape == graph.shape]
    assert len(importances) == 2
    np.testing.assert_array_equal(jnp.stack(importances), np.ones((2, *graph.shape)))
    # Two moments each of the input, two norms a block and one in the projected shortcut.
    assert len(jax.tree.leaves(statistics)) == 2 * (1 + 2 * 2 + 1)


def test_weights_are_drawn_as_the_authors_draw_them():
    (block,) = _model(blocks=(stgcn.BlockSpec(256),)).blocks
    np.testing.assert_allclose(np.std(block.kernel[...]), 0.02, rtol=0.06)
    np.testing.assert_allclose(np.std(block.temporal.kernel[...]), 0.02, rtol=0.01)
    scale = np.asarray(block.norm1.scale[...])
    np.testing.assert_allclose(np.mean(scale), 1, atol=4 * 0.02 / 16)
    np.testing.assert_allclose(np.std(scale), 0.02, rtol=0.2)
    for bias in (block.bias, block.temporal.bias, block.norm1.bias):
        np.testing.assert_array_equal(bias[...], np.zeros_like(bias[...]))


def test_fan_in_of_a_graph_kernel_is_its_channels():
    with jax.default_prng_impl("rbg"):
        model = stgcn.STGCN(
            _adjacency(),
            (stgcn.BlockSpec(200),),
            in_channels=2,
            kernel_init=stgcn.FAN_IN,
            rngs=nnx.Rngs(0),
        )
    (block,) = model.blocks
    for kernel, fan_in in ((block.kernel, 2), (block.temporal.kernel, 9 * 200)):
        limit = 1 / np.sqrt(fan_in)
        assert 0.98 * limit < np.abs(kernel[...]).max() <= limit
        np.testing.assert_allclose(np.std(kernel[...]), limit / np.sqrt(3), rtol=0.05)


def test_running_variance_is_unbiased():
    norm = stgcn.BatchNorm(2, dtype=None, rngs=nnx.Rngs(0))
    x = np.random.default_rng(2).normal(3, 2, (5, 2)).astype(np.float32)
    norm.train()
    y = norm(jnp.asarray(x))
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var(axis=0, ddof=1), rtol=1e-5)
    unit = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    np.testing.assert_allclose(y, unit * np.asarray(norm.scale[...]), rtol=1e-4, atol=1e-5)
    kept = norm.var[...]
    norm.eval()
    norm(jnp.asarray(x))
    np.testing.assert_array_equal(norm.var[...], kept)


def test_input_is_normalised_per_joint_and_coordinate():
    # In training, shifting and scaling any joint's coordinate must change nothing.
    model, x = _model(), _clips(batch=4)
    rng = np.random.default_rng(3)
    scale = rng.uniform(1, 3, (3, 1, JOINTS, 1)).astype(np.float32)
    shift = rng.normal(size=(3, 1, JOINTS, 1)).astype(np.float32)
    expected = _run(model, x)
    np.testing.assert_allclose(_run(model, scale * x + shift), expected, rtol=1e-2, atol=1e-3)
    frames = rng.uniform(1, 3, (3, 10, 1, 1)).astype(np.float32)
    assert not np.allclose(_run(model, frames * x), expected, rtol=1e-2, atol=1e-3)


def test_persons_are_averaged_after_the_last_block():
    model = _model()
    model.eval()
    x = _clips(persons=2)
    both = _run(model, x)
    single = [_run(model, x[..., person : person + 1]) for person in range(2)]
    np.testing.assert_allclose(both, (single[0] + single[1]) / 2, rtol=1e-5, atol=1e-6)


def test_only_neighbours_reach_a_joint_in_one_block():
    model = _model(blocks=(stgcn.BlockSpec(4),))
    model.eval()
    block, adjacency = model.blocks[0], _adjacency()

    @jax.jit
    @jax.grad
    def of_joint_one(y):
        return jnp.sum(block(y, adjacency)[1])

    y = jnp.asarray(np.random.default_rng(4).normal(size=(JOINTS, 64, 3, 3)), jnp.float32)
    reached = np.any(np.asarray(of_joint_one(y)) != 0, axis=(1, 2, 3))
    np.testing.assert_array_equal(reached, [True, True, False, False])


def test_first_block_has_no_shortcut_and_equal_widths_an_identity():
    specs = (stgcn.BlockSpec(3), stgcn.BlockSpec(3), stgcn.BlockSpec(3, 2), stgcn.BlockSpec(5))
    blocks = _model(blocks=specs).blocks
    assert [block.residual for block in blocks] == [False, True, True, True]
    assert [block.shortcut is not None for block in blocks] == [False, False, True, True]
    adjacency, y = _adjacency(), jnp.ones((JOINTS, 2, 6, 3))
    run = nnx.jit(lambda block, y: block(y, adjacency))
    for block, expected in zip(blocks[:2], (0, 1), strict=True):
        # With a scale of 0 nothing is left of a block but its shortcut.
        block.norm2.scale[...] = jnp.zeros(3)
        np.testing.assert_array_equal(run(block, y), np.full_like(y, expected))


def test_dropout_needs_a_key_in_training_only():
    model = _model(blocks=(stgcn.BlockSpec(4, 1, 0.5),))
    run = nnx.jit(lambda model, x, key: model(x, key=key))
    one, again, two = (run(model, _clips(), _key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != two)
    with pytest.raises(ValueError, match="rngs"):
        model(_clips())
    model.eval()
    np.testing.assert_array_equal(_run(model, _clips()), run(model, _clips(), _key(0)))


def test_random_edges_need_a_key_and_change_the_features():
    model = _model(blocks=BLOCKS[:1])
    with pytest.raises(ValueError, match="need a key"):
        model(_clips(), drop_edges=0.1)
    run = nnx.jit(
        lambda model, x, key, **rates: model(x, key=key, **rates),
        static_argnames=("drop_edges", "add_edges"),
    )
    key = _key(0)
    plain = run(model, _clips(), key)
    np.testing.assert_allclose(plain, _run(model, _clips()), rtol=1e-6)
    for rates in ({"drop_edges": 0.9}, {"add_edges": 0.9}):
        assert not np.allclose(run(model, _clips(), key, **rates), plain, rtol=1e-3)


def test_rates_of_random_edges_are_uniform():
    full = jnp.ones((3, 30, 30))
    keys = jax.random.split(_key(0), 200)

    def dropped(key):
        after = stgcn.random_edges(key, full, drop_edges=0.4, add_edges=0.0)
        return jnp.mean(after == 0), jnp.mean(after)

    share, mean = jax.jit(jax.vmap(dropped))(keys)
    # A rate from U(0, 0.4) has mean 0.2 and standard deviation 0.4 / sqrt(12).
    deviation = 0.4 / np.sqrt(12)
    np.testing.assert_allclose(np.mean(share), 0.2, atol=4 * deviation / np.sqrt(200))
    np.testing.assert_allclose(np.std(share), deviation, rtol=0.15)
    np.testing.assert_allclose(np.mean(mean), 1, atol=0.01)

    def added(key):
        after = stgcn.random_edges(key, full.at[:, 1:].set(0), drop_edges=0.0, add_edges=0.3)
        return jnp.mean(after[:, 1:] != 0), jnp.sum(after)

    share, total = jax.jit(jax.vmap(added))(keys)
    np.testing.assert_allclose(np.mean(share), 0.15, atol=4 * 0.3 / np.sqrt(12 * 200))
    np.testing.assert_allclose(total, np.full(200, 90.0), rtol=1e-5)


def test_head_is_linear_without_a_hidden_layer():
    with jax.default_prng_impl("rbg"):
        head, projector = (stgcn.Head(6, 4, hidden=h, rngs=nnx.Rngs(0)) for h in (None, 5))
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, 6)), jnp.float32)
    np.testing.assert_allclose(head(x) + head(-x), np.zeros((3, 4)), atol=1e-7)
    assert np.any(np.abs(projector(x) + projector(-x)) > 1e-5)
    assert projector(x).shape == (3, 4)


def test_even_kernels_and_empty_encoders_are_refused():
    with pytest.raises(ValueError, match="odd taps"):
        stgcn.STGCN(_adjacency(), BLOCKS, taps=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="one block"):
        _model(blocks=())


def test_seeds_train_in_one_program():
    graph, *_ = nnx.split(_model(), nnx.Param, ...)
    states = [nnx.split(_model(seed), nnx.Param, ...)[1:] for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def slope(state, x):
        def loss(parameters):
            model = nnx.merge(graph, parameters, state[1], copy=True)
            return jnp.mean(model(x) ** 2)

        return jax.value_and_grad(loss)(state[0])

    x = jnp.stack([_clips(0), _clips(1)])
    found = jax.jit(jax.vmap(slope))(stacked, x)
    one = jax.jit(slope)
    expected = [one(state, clips) for state, clips in zip(states, x, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)
