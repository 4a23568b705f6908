"""Residual networks (He et al. 2016) as torchvision builds them, trunk only: a feature map out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from experiments.common.errors import UserError

# Blocks per stage, and whether a block is a bottleneck.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    152: ((3, 8, 36, 3), True),
}
_WIDTHS = (64, 128, 256, 512)
_KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        # "SAME" would pad one side only under stride 2: not what pre-trained weights have seen.
        padding=[(kernel // 2, kernel // 2)] * 2,
        use_bias=False,
        kernel_init=_KAIMING,
        rngs=rngs,
    )


def _batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


class InstanceBatchNorm(nnx.Module):
    """IBN-a: instance normalisation on the first half of the channels, batch norm on the rest.

    Reference: Pan et al. 2018, "Two at once: enhancing learning and generalization capacities
    via IBN-Net", figure 3a.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.half = channels // 2
        self.instance = nnx.InstanceNorm(self.half, epsilon=1e-5, rngs=rngs)
        self.batch = _batch_norm(channels - self.half, rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Array:
        """Normalises; the shape is kept."""
        halves = (self.instance(x[..., : self.half]), self.batch(x[..., self.half :]))
        return jax.numpy.concatenate(halves, axis=-1)


class Downsample(nnx.Module):
    """The shortcut where a stage changes size: 1x1 convolution and batch norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = _conv(in_channels, out_channels, 1, stride, rngs)
        self.norm = _batch_norm(out_channels, rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Array:
        """(B, H, W, in) -> (B, H/stride, W/stride, out)."""
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions around a shortcut; the stride is in the first."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, *, ibn: bool, rngs: nnx.Rngs):
        self.conv1 = _conv(in_channels, width, 3, stride, rngs)
        self.bn1 = InstanceBatchNorm(width, rngs=rngs) if ibn else _batch_norm(width, rngs)
        self.conv2 = _conv(width, width, 3, 1, rngs)
        self.bn2 = _batch_norm(width, rngs)
        self.downsample: Downsample | None = nnx.data(None)
        if stride != 1 or in_channels != width:
            self.downsample = Downsample(in_channels, width, stride, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Array:
        """(B, H, W, in) -> (B, H/stride, W/stride, width)."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return nnx.relu(y + shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the stride is in the 3x3 (torchvision)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, *, ibn: bool, rngs: nnx.Rngs):
        out_channels = width * self.expansion
        self.conv1 = _conv(in_channels, width, 1, 1, rngs)
        self.bn1 = InstanceBatchNorm(width, rngs=rngs) if ibn else _batch_norm(width, rngs)
        self.conv2 = _conv(width, width, 3, stride, rngs)
        self.bn2 = _batch_norm(width, rngs)
        self.conv3 = _conv(width, out_channels, 1, 1, rngs)
        self.bn3 = _batch_norm(out_channels, rngs)
        self.downsample: Downsample | None = nnx.data(None)
        if stride != 1 or in_channels != out_channels:
            self.downsample = Downsample(in_channels, out_channels, stride, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Array:
        """(B, H, W, in) -> (B, H/stride, W/stride, 4 width)."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return nnx.relu(y + shortcut)


class ResNet(nnx.Module):
    """Residual network without its classifier.

    `model.train()` and `model.eval()` switch the batch norms.

    Attributes:
      depth: 18, 34, 50 or 152.
      out_channels: channels of the feature map, 512 or 2048.
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        ibn: bool = False,
        last_stride: int = 2,
        small_input: bool = False,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          depth: 18, 34, 50 or 152.
          in_channels: channels of the input.
          ibn: IBN-a in the first normalisation of each block of stages 1 to 3.
          last_stride: stride of stage 4; 1 doubles the side of the final map.
          small_input: a 3x3 stride-1 stem without pooling instead of 7x7 stride 2 with pooling.
          rngs: the stream "params" is used.

        Raises:
          ValueError: on another depth or stride.
        """
        if depth not in _DEPTHS:
            raise ValueError(f"depth {depth}: choose one of {sorted(_DEPTHS)}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride {last_stride}: choose 1 or 2")
        blocks, bottleneck = _DEPTHS[depth]
        block = Bottleneck if bottleneck else BasicBlock
        self.depth = depth
        self.small_input = small_input
        self.out_channels = _WIDTHS[-1] * block.expansion
        self.conv1 = _conv(in_channels, 64, *((3, 1) if small_input else (7, 2)), rngs)
        self.bn1 = _batch_norm(64, rngs)
        channels = 64
        stages = []
        strides = (1, 2, 2, last_stride)
        for stage, (count, width, stride) in enumerate(zip(blocks, _WIDTHS, strides, strict=True)):
            layers = []
            for index in range(count):
                first = stride if index == 0 else 1
                layers.append(block(channels, width, first, ibn=ibn and stage < 3, rngs=rngs))
                channels = width * block.expansion
            stages.append(nnx.List(layers))
        self.stages = nnx.List(stages)

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        between: Callable[[int, Array], Array] | None = None,
    ) -> Float[Array, "batch rows columns features"]:
        """Computes the final feature map.

        Args:
          images: (B, H, W, in_channels), normalised by the caller.
          between: called as `between(stage, x)` after each stage (1, 2, 3, 4) with its output;
            what it returns goes on.

        Returns:
          (B, H', W', out_channels), not negative; H' = H/32, or H/16 with last_stride 1, both
          four times that with the small-input stem.
        """
        x = nnx.relu(self.bn1(self.conv1(images)))
        if not self.small_input:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages, start=1):
            for block in blocks:
                x = block(x)
            if between is not None:
                x = between(stage, x)
        return x


def load_torchvision(model: ResNet, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Puts weights under torchvision's (IBN-Net's) names into a network, in place.

    `fc.*` (a classifier) and `*.num_batches_tracked` are passed over.

    Args:
      model: the network that receives the weights.
      tensors: torchvision name -> array, convolutions as (out, in, height, width).
      source: what the weights are called in an error.

    Raises:
      UserError: on a missing or unknown name, or another shape; the network is then untouched.
    """
    slots = _torchvision_slots(model)
    given = {
        name: value
        for name, value in tensors.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    missing = [name for name in slots if name not in given]
    unknown = sorted(name for name in given if name not in slots)
    if missing:
        raise UserError(f"{source} lacks {len(missing)} weights of this network: {_some(missing)}")
    if unknown:
        raise UserError(f"{source} has {len(unknown)} weights unknown here: {_some(unknown)}")
    values = {}
    for name, slot in slots.items():
        value = np.asarray(given[name])
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        if value.shape != slot[...].shape:
            raise UserError(
                f"{source}: {name} has shape {value.shape}, this network needs {slot[...].shape}"
                " (height, width, in, out)"
            )
        if not np.isfinite(value).all():
            raise UserError(f"{source}: {name} holds NaN or infinity")
        values[name] = value
    for name, slot in slots.items():
        slot[...] = jax.numpy.asarray(values[name], slot[...].dtype)


def _torchvision_slots(model: ResNet) -> dict[str, Any]:
    slots: dict[str, Any] = {}

    def norm(name: str, layer: InstanceBatchNorm | nnx.BatchNorm | nnx.InstanceNorm) -> None:
        if isinstance(layer, InstanceBatchNorm):
            norm(f"{name}.IN", layer.instance)
            norm(f"{name}.BN", layer.batch)
            return
        slots[f"{name}.weight"] = layer.scale
        slots[f"{name}.bias"] = layer.bias
        if isinstance(layer, nnx.BatchNorm):
            slots[f"{name}.running_mean"] = layer.mean
            slots[f"{name}.running_var"] = layer.var

    slots["conv1.weight"] = model.conv1.kernel
    norm("bn1", model.bn1)
    for stage, blocks in enumerate(model.stages, start=1):
        for index, block in enumerate(blocks):
            prefix = f"layer{stage}.{index}"
            for number in range(1, 4 if isinstance(block, Bottleneck) else 3):
                slots[f"{prefix}.conv{number}.weight"] = getattr(block, f"conv{number}").kernel
                norm(f"{prefix}.bn{number}", getattr(block, f"bn{number}"))
            if block.downsample is not None:
                slots[f"{prefix}.downsample.0.weight"] = block.downsample.conv.kernel
                norm(f"{prefix}.downsample.1", block.downsample.norm)
    return slots


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
