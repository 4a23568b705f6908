"""Heads that fuse features of several modalities, and predict from one of them as well.

Each head gives the logits of all modalities together and of each alone **through the same
parameters**: what a modality can do by itself needs no head of its own, and an auxiliary loss on it
trains the very weights that fuse.

Reference:
    Wei, Luo and Luo, "Improving multimodal learning via imbalanced learning", ICCV 2025,
    arXiv 2507.10203.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from asym import numerics


class Affine(NamedTuple):
    """A linear layer, ``x @ kernel + bias``: kernel (in, out) and bias (out,)."""

    kernel: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]


class FusedLogits(NamedTuple):
    """Logits (..., C) of the fused prediction and of each modality through the same parameters."""

    fused: Float[Array, "*batch classes"]
    unimodal: tuple[Float[Array, "*batch classes"], ...]


def concat_fusion(features: Sequence[Float[Array, "*batch _"]], head: Affine) -> FusedLogits:
    """One linear layer over all features side by side; the others are 0 for a modality alone.

    ``z = W [x_0; ...; x_n] + b`` and ``z_m = W [0; x_m; 0] + b``, so that the bias counts once in
    each: ``z = sum_m z_m - (n - 1) b``.

    Args:
        features: n arrays (..., D_m).
        head: layer from sum of D_m to C.

    Returns:
        Logits (..., C), fused and of each modality; at least float32.

    Raises:
        AssertionError: if the features do not fill the layer's inputs.

    Reference:
        arXiv 2507.10203, default head; the missing modality is 0, not its mean.
    """
    widths = [each.shape[-1] for each in features]
    chex.assert_axis_dimension(head.kernel, 0, sum(widths))
    ends = [sum(widths[: place + 1]) for place in range(len(widths) - 1)]
    parts = [
        _product(each, kernel)
        for each, kernel in zip(features, jnp.split(head.kernel, ends), strict=True)
    ]
    return FusedLogits(sum(parts) + head.bias, tuple(part + head.bias for part in parts))


def sum_fusion(
    features: Sequence[Float[Array, "*batch _"]], heads: Sequence[Affine]
) -> FusedLogits:
    """A linear layer for each modality, the logits added.

    ``z = sum_m z_m`` with ``z_m = W_m x_m + b_m``.  The paper's `share` head is the same layer n
    times.

    Args:
        features: n arrays (..., D_m).
        heads: n layers from D_m to C.

    Returns:
        Logits (..., C), fused and of each modality; at least float32.

    Raises:
        AssertionError: if a layer does not fit its features.
        ValueError: if there are not as many layers as modalities.

    Reference:
        arXiv 2507.10203, heads `sum` and `share`.
    """
    unimodal = tuple(_affine(each, head) for each, head in zip(features, heads, strict=True))
    return FusedLogits(sum(unimodal[1:], start=unimodal[0]), unimodal)


def gated_fusion(
    *,
    gate: Float[Array, "*batch _"],
    content: Float[Array, "*batch _"],
    gate_layer: Affine,
    content_layer: Affine,
    head: Affine,
) -> FusedLogits:
    """One modality opens and shuts the other; alone, each is its own gate.

    ``z = W_o (sigmoid(h_0) * h_1) + b_o`` and ``z_m = W_o (sigmoid(h_m) * h_m) + b_o`` with ``h``
    the two hidden layers.

    Args:
        gate: features of the modality that gates (..., D_0), audio in the paper.
        content: features of the modality that is gated (..., D_1).
        gate_layer: layer from D_0 to H.
        content_layer: layer from D_1 to H.
        head: layer from H to C.

    Returns:
        Logits (..., C), fused and of gate and content; at least float32.

    Raises:
        AssertionError: if a layer does not fit its input.

    Reference:
        arXiv 2507.10203, head `gated`.
    """
    hidden_gate, hidden_content = _affine(gate, gate_layer), _affine(content, content_layer)
    return FusedLogits(
        _affine(jax.nn.sigmoid(hidden_gate) * hidden_content, head),
        tuple(_affine(jax.nn.silu(hidden), head) for hidden in (hidden_gate, hidden_content)),
    )


def bilinear_fusion(
    *,
    left: Float[Array, "*batch dim"],
    right: Float[Array, "*batch dim"],
    hidden: Affine,
    head: Affine,
) -> FusedLogits:
    """Two linear layers over the outer product of two modalities, or of one with itself.

    ``z = W_o (W_h vec(x_0 x_1^T) + b_h) + b_o`` and ``z_m`` of ``vec(x_m x_m^T)``.

    Args:
        left: features of the modality in the rows of the product (..., D), audio in the paper.
        right: features of the modality in its columns (..., D).
        hidden: layer from D * D, rows first, to H.
        head: layer from H to C.

    Returns:
        Logits (..., C), fused and of left and right; at least float32.

    Raises:
        AssertionError: if the features differ in shape or a layer does not fit its input.

    Reference:
        arXiv 2507.10203, called `film` in the released code.
    """
    chex.assert_equal_shape([left, right])
    fused, *unimodal = (
        _affine(_affine(_outer(rows, columns), hidden), head)
        for rows, columns in ((left, right), (left, left), (right, right))
    )
    return FusedLogits(fused, tuple(unimodal))


def _product(features: Array, kernel: Array) -> Array:
    """Matrix product that accumulates and returns half precision in float32."""
    chex.assert_axis_dimension(kernel, 0, features.shape[-1])
    wide = jnp.promote_types(jnp.result_type(features, kernel), jnp.float32)
    return jnp.matmul(features, kernel, preferred_element_type=wide)


def _affine(features: Array, layer: Affine) -> Array:
    return _product(features, layer.kernel) + layer.bias


def _outer(rows: Array, columns: Array) -> Array:
    """Outer products of vectors, flattened with the rows first."""
    product = numerics.at_least_float32(rows)[..., :, None] * columns[..., None, :]
    return product.reshape(*rows.shape[:-1], -1)
