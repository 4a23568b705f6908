"""Spatial-temporal graph convolutional networks (Yan et al. 2018) for joint sequences.

Inside, signals are laid out (joints, clips, frames, channels): with the joints in front and the
channels behind, graph, pointwise and temporal convolution are plain matrix products without a
transposition, which stay fast on a CPU when a vmap gives every seed its own weights.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from asym import graphs

# The authors' weights.  Batch norm makes the step relative to weights so small a large one: short
# runs learn from FAN_IN, the frameworks' usual U(-1, 1) / sqrt(fan_in).
NORMAL = nnx.initializers.normal(0.02)
FAN_IN = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Clips up to this many times as long as a kernel have its gradient from one matrix product.
_DENSE_TIME = 3


class Buffer(nnx.Variable):
    """An array that belongs to a network and is neither trained nor updated."""


class BlockSpec(NamedTuple):
    """One block.

    Attributes:
      width: output channels.
      stride: every how many frames an output is computed.
      dropout: probability that an output of the temporal convolution is dropped.
    """

    width: int
    stride: int = 1
    dropout: float = 0.0


def ten_blocks(
    hidden_channels: int = 16, hidden_dim: int = 256, dropout: float = 0.5
) -> tuple[BlockSpec, ...]:
    """The encoder of HiCLR: widths h (4 times), 2h (3), 4h (2) and hidden_dim.

    Args:
      hidden_channels: h, the width multiplier.
      hidden_dim: width of the last block and so of the features.
      dropout: for all blocks but the first.

    Returns:
      Ten blocks, two of which halve the number of frames.
    """
    h = hidden_channels
    widths = (h, h, h, h, 2 * h, 2 * h, 2 * h, 4 * h, 4 * h, hidden_dim)
    return tuple(
        BlockSpec(width, 2 if index in (4, 7) else 1, dropout if index else 0.0)
        for index, width in enumerate(widths)
    )


def three_blocks(hidden_channels: int = 16) -> tuple[BlockSpec, ...]:
    """The small encoder: widths h, 2h and 4h, two halvings of the frames, no dropout.

    Args:
      hidden_channels: h, the width multiplier.

    Returns:
      Three blocks.
    """
    h = hidden_channels
    return BlockSpec(h), BlockSpec(2 * h, 2), BlockSpec(4 * h, 2)


class BatchNorm(nnx.BatchNorm):
    """Batch norm over the last axis whose running variance is unbiased, as PyTorch's is.

    Scales are drawn from N(1, 0.02^2).
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        super().__init__(
            channels,
            momentum=0.9,
            epsilon=1e-5,
            dtype=dtype,
            scale_init=lambda key, shape, kind: 1 + NORMAL(key, shape, kind),
            # The difference of squares would cancel for coordinates far from the origin.
            use_fast_variance=False,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "*batch channels"]) -> Array:  # type: ignore[override]
        """Normalises; the shape is kept."""
        kept = self.momentum * self.var[...]
        y = super().__call__(x)
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            self.var[...] = kept + (self.var[...] - kept) * (count / max(count - 1, 1))
        return y


class TemporalConv(nnx.Module):
    """Convolution over time, every joint alone, zero-padded by half of the (odd) kernel."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        taps: int,
        stride: int,
        dtype: jnp.dtype | None,
        kernel_init: nnx.Initializer = NORMAL,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.dtype = dtype
        self.kernel = nnx.Param(kernel_init(rngs.params(), (taps, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: Float[Array, "joints clips frames channels"]) -> Array:
        """(V, B, T, in) -> (V, B, ceil(T / stride), out)."""
        kernel, bias = (parameter[...].astype(x.dtype) for parameter in (self.kernel, self.bias))
        y = _convolve_time(self.stride, x.reshape(-1, *x.shape[2:]), kernel)
        return y.reshape(*x.shape[:2], *y.shape[1:]) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve_time(
    stride: int, x: Float[Array, "batch frames channels"], kernel: Float[Array, "taps in out"]
) -> Float[Array, "batch outputs out"]:
    """Every `stride`-th output of a convolution that is zero-padded by half of the kernel."""
    half = kernel.shape[0] // 2
    return _convolve(x, kernel, stride, (half, half))


def _convolve(x: Array, kernel: Array, stride: int, padding: tuple[int, int]) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,), [padding], dimension_numbers=("NWC", "WIO", "NWC")
    )


def _convolve_time_forward(stride: int, x: Array, kernel: Array) -> tuple[Array, Any]:
    return _convolve_time(stride, x, kernel), (x, kernel)


def _convolve_time_backward(stride: int, residuals: Any, pull: Array) -> tuple[Array, Array]:
    """The gradients, in forms that a CPU is fast at.

    The signal's is one convolution whose outputs are `stride` frames at once: XLA's own fills
    `pull` up with zeros.  The kernel's is read off the product of all frames with all outputs,
    unless the clip is so long that most of it would be wasted: XLA's own transposes the signal.
    """
    x, kernel = residuals
    batch, frames, channels = x.shape
    taps, _, features = kernel.shape
    outputs = pull.shape[1]
    half = taps // 2
    if frames > _DENSE_TIME * taps:
        (of_kernel,) = jax.vjp(lambda k: _convolve(x, k, stride, (half, half)), kernel)[1](pull)
    else:
        pairs = x.reshape(batch, -1).T @ pull.reshape(batch, -1)
        pairs = pairs.reshape(frames, channels, outputs, features)
        tap = np.arange(frames)[:, None] - stride * np.arange(outputs) + half
        meet = jnp.asarray(tap == np.arange(taps)[:, None, None], x.dtype)
        of_kernel = jnp.einsum("kto,tcof->kcf", meet, pairs)
    # Frame ``stride * o + phase`` was read by output ``o + lag``, with this tap.
    before, after = half // stride, (half + stride - 1) // stride
    lags, phases = np.arange(-before, after + 1), np.arange(stride)
    tap = half + phases - stride * lags[:, None]
    read = (tap >= 0) & (tap < taps)
    spread = jnp.where(read[..., None, None], kernel[np.where(read, tap, 0)], 0)
    spread = spread.transpose(0, 3, 1, 2).reshape(len(lags), features, stride * channels)
    of_x = _convolve(pull, spread, 1, (before, after))
    return of_x.reshape(batch, -1, channels)[:, :frames], of_kernel


_convolve_time.defvjp(_convolve_time_forward, _convolve_time_backward)


class Block(nnx.Module):
    """Graph convolution, batch norm, ReLU, temporal convolution, batch norm, shortcut, ReLU."""

    def __init__(
        self,
        in_channels: int,
        spec: BlockSpec,
        *,
        subsets: int,
        joints: int,
        residual: bool,
        taps: int,
        dtype: jnp.dtype | None,
        kernel_init: nnx.Initializer = NORMAL,
        rngs: nnx.Rngs,
    ):
        width = spec.width
        self.residual = residual
        self.stride = spec.stride
        # Drawn flat: the subsets are further outputs and no part of the fan-in.
        flat = kernel_init(rngs.params(), (in_channels, subsets * width))
        flat = flat.reshape(in_channels, subsets, width)
        self.kernel = nnx.Param(flat.transpose(1, 0, 2))
        self.bias = nnx.Param(jnp.zeros((subsets, width)))
        self.importance = nnx.Param(jnp.ones((subsets, joints, joints)))
        self.norm1 = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.temporal = TemporalConv(
            width,
            width,
            taps=taps,
            stride=spec.stride,
            dtype=dtype,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.norm2 = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(spec.dropout)
        self.shortcut: nnx.Linear | None = nnx.data(None)
        self.shortcut_norm: BatchNorm | None = nnx.data(None)
        if residual and (spec.stride != 1 or in_channels != width):
            self.shortcut = nnx.Linear(
                in_channels, width, dtype=dtype, kernel_init=kernel_init, rngs=rngs
            )
            self.shortcut_norm = BatchNorm(width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "joints clips frames channels"],
        adjacency: Float[Array, "subsets joints joints"],
        *,
        key: Array | None = None,
    ) -> Array:
        """Applies the block.

        Args:
          x: (V, B, T, in).
          adjacency: (K, V, V), before the edge importance.
          key: random key of the dropout.

        Returns:
          (V, B, ceil(T / stride), width).
        """
        y = graphs.graph_conv(
            x,
            kernel=self.kernel[...].astype(x.dtype),
            bias=self.bias[...].astype(x.dtype),
            adjacency=(adjacency * self.importance[...]).astype(x.dtype),
        )
        y = self.norm2(self.temporal(nnx.relu(self.norm1(y))))
        y = self.dropout(y, rngs=key)
        if self.shortcut is not None and self.shortcut_norm is not None:
            z = x[:, :, :: self.stride]
            y = y + self.shortcut_norm(self.shortcut(z.reshape(-1, z.shape[-1])).reshape(y.shape))
        elif self.residual:
            y = y + x
        return nnx.relu(y)


class STGCN(nnx.Module):
    """Encoder of skeleton sequences without a head.

    `model.train()` and `model.eval()` switch batch norms and dropout.  Its state is `nnx.Param`
    (edge importance included), `nnx.BatchStat` and one `Buffer`, the graph.

    Attributes:
      feature_dim: channels of the features.
    """

    def __init__(
        self,
        adjacency: Float[Array, "subsets joints joints"],
        blocks: tuple[BlockSpec, ...],
        *,
        in_channels: int = 3,
        taps: int = 9,
        dtype: jnp.dtype | None = None,
        kernel_init: nnx.Initializer = NORMAL,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          adjacency: graph tensor (K, V, V) of `asym.graphs.skeleton_adjacency`.
          blocks: `ten_blocks()`, `three_blocks()` or others; the first has no shortcut.
          in_channels: coordinates of a joint.
          taps: length of the temporal kernels, odd.
          dtype: dtype of the computation, float32 parameters stay; None takes the input's.
          kernel_init: `NORMAL`, as the authors, or `FAN_IN`.
          rngs: the stream "params" is used.

        Raises:
          ValueError: without a block, or with an even kernel.
        """
        if not blocks or taps % 2 == 0:
            raise ValueError(f"need at least one block and odd taps, not {len(blocks)} and {taps}")
        subsets, joints, _ = adjacency.shape
        self.dtype = dtype
        self.adjacency = Buffer(jnp.asarray(adjacency))
        self.data_norm = BatchNorm(joints * in_channels, dtype=dtype, rngs=rngs)
        layers, channels = [], in_channels
        for index, spec in enumerate(blocks):
            layers.append(
                Block(
                    channels,
                    spec,
                    subsets=subsets,
                    joints=joints,
                    residual=index > 0,
                    taps=taps,
                    dtype=dtype,
                    kernel_init=kernel_init,
                    rngs=rngs,
                )
            )
            channels = spec.width
        self.blocks = nnx.List(layers)
        self.feature_dim = channels

    def __call__(
        self,
        x: Float[Array, "batch coordinates frames joints persons"],
        *,
        key: Array | None = None,
        drop_edges: float = 0.0,
        add_edges: float = 0.0,
    ) -> Float[Array, "batch features"]:
        """Computes the features, averaged over frames, joints and persons (absent ones included).

        Args:
          x: sequences (N, C, T, V, M).
          key: random key, needed for dropout in training and for edges that are dropped or added.
          drop_edges: each block drops edges with a probability drawn from U(0, drop_edges).
          add_edges: each block then adds edges with a probability drawn from U(0, add_edges).

        Returns:
          (N, feature_dim), float32 or wider.

        Raises:
          ValueError: if a key is needed and missing.
        """
        if key is None and (drop_edges or add_edges):
            raise ValueError("random edges need a key")
        batch, coordinates, frames, joints, persons = x.shape
        clips = batch * persons
        # One scale and shift a joint and coordinate, joint-major.
        y = x.transpose(0, 4, 2, 3, 1).reshape(clips, frames, joints * coordinates)
        y = self.data_norm(y if self.dtype is None else y.astype(self.dtype))
        y = y.reshape(clips, frames, joints, coordinates).transpose(2, 0, 1, 3)
        for index, block in enumerate(self.blocks):
            adjacency, dropout_key = self.adjacency[...], None
            if key is not None:
                dropout_key, edge_key = jax.random.split(jax.random.fold_in(key, index))
                adjacency = random_edges(
                    edge_key, adjacency, drop_edges=drop_edges, add_edges=add_edges
                )
            y = block(y, adjacency, key=dropout_key)
        y = jnp.mean(y.astype(jnp.promote_types(y.dtype, jnp.float32)), axis=(0, 2))
        return jnp.mean(y.reshape(batch, persons, -1), axis=1)


class Head(nnx.Module):
    """Projector of the pre-training, linear - ReLU - linear; without `hidden` one linear layer."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden: int | None = None,
        kernel_init: nnx.Initializer = NORMAL,
        rngs: nnx.Rngs,
    ):
        self.hidden: nnx.Linear | None = nnx.data(None)
        if hidden is not None:
            self.hidden = nnx.Linear(in_dim, hidden, kernel_init=kernel_init, rngs=rngs)
            in_dim = hidden
        self.linear = nnx.Linear(in_dim, out_dim, kernel_init=kernel_init, rngs=rngs)

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch dim"]:
        """(N, in_dim) -> (N, out_dim)."""
        return self.linear(x if self.hidden is None else nnx.relu(self.hidden(x)))


def random_edges(
    key: Array,
    adjacency: Float[Array, "subsets joints joints"],
    *,
    drop_edges: float,
    add_edges: float,
) -> Float[Array, "subsets joints joints"]:
    """Drops, then adds edges at rates drawn from U(0, drop_edges) and U(0, add_edges).

    Args:
      key: random key.
      adjacency: (K, V, V).
      drop_edges: largest rate at which edges vanish, in [0, 1); 0 leaves them.
      add_edges: largest rate at which zero entries become edges, in [0, 1]; 0 leaves them.

    Returns:
      (K, V, V).
    """
    drop_rate_key, keep_key, add_rate_key, add_key = jax.random.split(key, 4)
    if drop_edges:
        rate = jax.random.uniform(drop_rate_key, maxval=drop_edges)
        keep = jax.random.bernoulli(keep_key, 1 - rate, adjacency.shape)
        adjacency = graphs.drop_edges(adjacency, keep=keep, rate=rate)
    if add_edges:
        rate = jax.random.uniform(add_rate_key, maxval=add_edges)
        added = jax.random.bernoulli(add_key, rate, adjacency.shape)
        adjacency = graphs.add_edges(adjacency, added=added)
    return adjacency
