"""The copy detector: a backbone, GeM pooling, a projector whose output length is the signal."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from asym import retrieval
from experiments.common.errors import UserError
from experiments.common.nets.resnet import ResNet, load_torchvision

# Backbone name -> (ResNet depth, IBN-a).
_RESNETS = {
    "resnet18": (18, False),
    "resnet50": (50, False),
    "resnet50_ibn": (50, True),
    "resnet152": (152, False),
}
BACKBONES = ("small", *_RESNETS)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_WAVEBLOCK_SHARE = 0.3
_WAVEBLOCK_GAIN = 1.5
_KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Features(NamedTuple):
    """What the network says about B images.

    Attributes:
      pool: (B, C), GeM-pooled feature, not negative.
      projection: (B, D), projector and final batch norm; its direction is the content, its
        length how much of it there is.
      logits: (B, num_classes).
      scale: (B,) in (0, 1), the kept area that the norm_regress baseline predicts; None without
        that head.
    """

    pool: Float[Array, "batch channels"]
    projection: Float[Array, "batch dim"]
    logits: Float[Array, "batch classes"]
    scale: Float[Array, " batch"] | None


def waveblock(
    key: Array, x: Float[Array, "batch height width channels"]
) -> Float[Array, "batch height width channels"]:
    """Multiplies everything outside a random horizontal band by 1.5; for training only.

    The band is round(0.3 height) rows high and the same for the whole batch.

    Args:
      key: random key.
      x: (B, H, W, C).

    Returns:
      (B, H, W, C).

    Reference: ASL card, "Features and networks" 1; Wang et al. 2022, "Attentive WaveBlock".
    """
    height = x.shape[1]
    band = round(_WAVEBLOCK_SHARE * height)
    start = jax.random.randint(key, (), 0, height - band + 1)
    row = jnp.arange(height)
    inside = (row >= start) & (row < start + band)
    gain = jnp.where(inside, 1.0, _WAVEBLOCK_GAIN).astype(x.dtype)
    return x * gain[:, None, None]


class PatchConv(nnx.Module):
    """3x3 convolution of stride 2 without bias, as nine strided slices and one matrix product.

    The same numbers as `lax.conv_general_dilated` with padding 1.  A vmap over models with
    different weights makes a grouped convolution of that, and on a CPU even the plain one is
    slow inside a scan: this form is 20 to 30 times faster there (README, "Speed").
    """

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_KAIMING(rngs.params(), (3, 3, in_channels, out_channels)))

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Array:
        """(B, H, W, in) -> (B, ceil(H/2), ceil(W/2), out)."""
        rows, columns = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [
            x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            for i in range(3)
            for j in range(3)
        ]
        kernel = self.kernel[...]
        return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class SmallNet(nnx.Module):
    """Three blocks of 3x3 stride-2 convolution (24, 48, 64), batch norm and ReLU."""

    out_channels = 64

    def __init__(self, *, rngs: nnx.Rngs):
        widths = (3, 24, 48, self.out_channels)
        self.convs = nnx.List([PatchConv(widths[i], widths[i + 1], rngs=rngs) for i in range(3)])
        self.norms = nnx.List([_batch_norm(width, rngs=rngs) for width in widths[1:]])

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Array:
        """(B, H, W, 3) -> (B, H/8, W/8, 64)."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return x


class Projector(nnx.Module):
    """Linear, batch norm, LeakyReLU 0.2, linear, batch norm without shift."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.linear1 = nnx.Linear(in_dim, hidden_dim, rngs=rngs)
        self.norm1 = _batch_norm(hidden_dim, rngs=rngs)
        self.linear2 = nnx.Linear(hidden_dim, out_dim, rngs=rngs)
        self.norm2 = _batch_norm(out_dim, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "batch channels"]) -> Float[Array, "batch dim"]:
        """(B, in_dim) -> (B, out_dim)."""
        x = nnx.leaky_relu(self.norm1(self.linear1(x)), 0.2)
        return self.norm2(self.linear2(x))


class CopyDetector(nnx.Module):
    """Backbone, GeM pooling, projector and classifier (ASL card, "Features and networks").

    `model.train()` and `model.eval()` switch batch statistics to running averages; a key turns
    Waveblock on in training (resnets only).
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int,
        with_scale_head: bool = False,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          backbone: one of `BACKBONES`.
          num_classes: number of training images, each a class of its own.
          with_scale_head: add the linear head of the norm_regress baseline.
          rngs: the stream "params" is used.

        Raises:
          UserError: on another backbone.
        """
        self.backbone: SmallNet | ResNet
        if backbone == "small":
            self.backbone = SmallNet(rngs=rngs)
            hidden, dim = 128, 64
            mean: tuple[float, ...] = (0.5,) * 3
            deviation: tuple[float, ...] = (0.25,) * 3
        elif backbone in _RESNETS:
            depth, ibn = _RESNETS[backbone]
            self.backbone = ResNet(depth, ibn=ibn, last_stride=1, rngs=rngs)
            hidden, dim = 4096, 8192
            mean, deviation = _IMAGENET_MEAN, _IMAGENET_DEVIATION
        else:
            raise UserError(f"backbone {backbone!r}: choose one of {', '.join(BACKBONES)}")
        self.name = backbone
        self.pixel_mean = mean
        self.pixel_deviation = deviation
        channels = self.backbone.out_channels
        self.gem_power = nnx.Param(jnp.asarray(3.0))
        self.projector = Projector(channels, hidden, dim, rngs=rngs)
        self.classifier = nnx.Linear(
            dim,
            num_classes,
            use_bias=False,
            kernel_init=nnx.initializers.normal(0.001),
            rngs=rngs,
        )
        self.scale_head: nnx.Linear | None = nnx.data(None)
        if with_scale_head:
            self.scale_head = nnx.Linear(channels, 1, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width 3"], *, key: Array | None = None
    ) -> Features:
        """Computes the features of a batch of images.

        Args:
          images: (B, H, W, 3) in [0, 1]; the pixel normalisation is inside.
          key: random key of Waveblock; without it, and in evaluation, there is none.

        Returns:
          `Features`; the gradient of its `scale` reaches the backbone.
        """
        x = (images - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_deviation)
        x = x.astype(images.dtype)
        if isinstance(self.backbone, ResNet):
            x = self.backbone(x, between=self._waves(key))
        else:
            x = self.backbone(x)
        pool = retrieval.gem_pool(x, self.gem_power[...], 1e-6)
        projection = self.projector(pool)
        scale = None
        if self.scale_head is not None:
            scale = jax.nn.sigmoid(self.scale_head(pool)[:, 0])
        return Features(pool, projection, self.classifier(projection), scale)

    def _waves(self, key: Array | None):
        if key is None or self.projector.norm1.use_running_average:
            return None

        def between(stage: int, x: Array) -> Array:
            return waveblock(jax.random.fold_in(key, stage), x) if stage in (2, 3) else x

        return between


def load_backbone(model: CopyDetector, path: str | os.PathLike[str]) -> None:
    """Puts pre-trained weights, a .safetensors file with torchvision's names, into the backbone.

    Args:
      model: a detector with a ResNet backbone; changed in place.
      path: the file.

    Raises:
      UserError: if the backbone is not a ResNet, the file is missing or unreadable, or its names
        or shapes are not this network's.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not isinstance(model.backbone, ResNet):
        raise UserError(f"backbone {model.name!r} has no pre-trained weights: choose a resnet")
    if not os.path.isfile(path):
        raise UserError(f"backbone weights not found: {path}")
    try:
        tensors: dict[str, np.ndarray] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable .safetensors file: {error}") from error
    load_torchvision(model.backbone, tensors, str(path))


def _batch_norm(channels: int, *, use_bias: bool = True, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, use_bias=use_bias, rngs=rngs)
