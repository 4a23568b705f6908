import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asym import fusion
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


def _linear(x, layer):
    return np.asarray(x) @ np.asarray(layer.kernel) + np.asarray(layer.bias)


def test_concat_head_counts_its_bias_once_in_each_prediction(x64):
    features, head = _features(29), _layer(32, sum(WIDTHS))
    found = fusion.concat_fusion(features, head)
    np.testing.assert_allclose(found.fused, _linear(np.hstack(features), head), rtol=1e-12)
    for place, logits in enumerate(found.unimodal):
        alone = [x if other == place else np.zeros_like(x) for other, x in enumerate(features)]
        np.testing.assert_allclose(logits, _linear(np.hstack(alone), head), rtol=1e-12)
    excess = sum(found.unimodal) - 2 * head.bias
    np.testing.assert_allclose(found.fused, excess, atol=1e-12)


def test_sum_head_adds_the_predictions_and_may_share_one_layer(x64):
    features = _features(34)
    heads = [_layer(37 + 2 * place, width) for place, width in enumerate(WIDTHS)]
    found = fusion.sum_fusion(features, heads)
    expected = [_linear(x, head) for x, head in zip(features, heads, strict=True)]
    chex.assert_trees_all_close(found.unimodal, tuple(expected), rtol=1e-12)
    np.testing.assert_allclose(found.fused, sum(expected), atol=1e-12)

    same, shared = _features(43, (5, 5)), _layer(45, 5)
    found = fusion.sum_fusion(same, [shared] * 2)
    expected = _linear(same[0] + same[1], shared) + shared.bias
    np.testing.assert_allclose(found.fused, expected, atol=1e-12)
    with pytest.raises(ValueError, match="shorter"):
        fusion.sum_fusion(features, heads[:2])


def test_gated_head_has_directed_roles(x64):
    gate, content = _features(47, (3, 5))
    layers = {"gate_layer": _layer(49, 3, 6), "content_layer": _layer(51, 5, 6)}
    head = _layer(53, 6)
    fuse = jax.jit(fusion.gated_fusion)
    found = fuse(gate=gate, content=content, head=head, **layers)
    opened = _linear(gate, layers["gate_layer"])
    passed = _linear(content, layers["content_layer"])

    def through(gating, gated):
        return _linear(gated / (1 + np.exp(-gating)), head)

    np.testing.assert_allclose(found.fused, through(opened, passed), rtol=1e-11)
    np.testing.assert_allclose(found.unimodal[0], through(opened, opened), rtol=1e-11)
    np.testing.assert_allclose(found.unimodal[1], through(passed, passed), rtol=1e-11)
    swapped = fuse(
        gate=content,
        content=gate,
        gate_layer=layers["content_layer"],
        content_layer=layers["gate_layer"],
        head=head,
    )
    assert not np.allclose(swapped.fused, found.fused)
    chex.assert_trees_all_equal(swapped.unimodal, found.unimodal[::-1])


def test_bilinear_head_is_quadratic_in_one_modality(x64):
    left, right = _features(55, (3, 3))
    hidden, head = _layer(57, 9, 6), _layer(59, 6)
    layers = {"hidden": hidden, "head": head}
    fuse = jax.jit(fusion.bilinear_fusion)
    found = fuse(left=left, right=right, **layers)
    product = np.einsum("bi,bj->bij", left, right).reshape(BATCH, 9)
    np.testing.assert_allclose(found.fused, _linear(_linear(product, hidden), head), rtol=1e-11)
    for modality, logits in zip((left, right), found.unimodal, strict=True):
        itself = fuse(left=modality, right=modality, **layers)
        chex.assert_trees_all_equal(logits, itself.fused)
    flipped = fuse(left=-left, right=right, **layers)
    chex.assert_trees_all_equal(flipped.unimodal, found.unimodal)


def test_heads_accumulate_half_precision_in_float32():
    features = [jnp.full((1, 512), 1.0, jnp.bfloat16), jnp.full((1, 1), 2**-7, jnp.bfloat16)]
    head = Affine(jnp.ones((513, 1), jnp.bfloat16), jnp.zeros(1, jnp.bfloat16))
    found = fusion.concat_fusion(features, head)
    assert found.fused.dtype == jnp.float32
    # bfloat16 would lose the small modality: its digits end at 4 here.
    np.testing.assert_array_equal(found.fused, [[512 + 2**-7]])
    layer, square = Affine(head.kernel[:512], head.bias), Affine(head.kernel[:4], head.bias)
    one = Affine(head.kernel[:1], head.bias)
    others = [
        fusion.sum_fusion([features[0], features[1]], [layer, one]),
        fusion.gated_fusion(
            gate=features[0], content=features[1], gate_layer=layer, content_layer=one, head=one
        ),
        fusion.bilinear_fusion(
            left=features[0][:, :2], right=features[0][:, 2:4], hidden=square, head=one
        ),
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} == {jnp.dtype(jnp.float32)}


def test_head_refuses_features_that_do_not_fill_it():
    with pytest.raises(AssertionError):
        fusion.concat_fusion(_features(61), _layer(62, sum(WIDTHS) + 1))
