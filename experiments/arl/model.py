"""One encoder a modality, and the head that fuses them."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from asym import fusion
from experiments.common.nets import resnet

FUSIONS = ("concat", "sum", "share", "gated", "film")
ENCODERS = ("mlp", "resnet18")

# Not jax's own Xavier initialiser, which cuts the normal distribution off at two deviations.
_XAVIER = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
_MLP_WIDTHS = (128, 64)


class Mlp(nnx.Module):
    """Two layers with ReLU after both, on flattened input.

    Args:
      inputs: Entries of one example.
      rngs: The stream "params" is used.
    """

    def __init__(self, inputs: int, *, rngs: nnx.Rngs) -> None:
        sizes = (inputs, *_MLP_WIDTHS)
        self.layers = nnx.List(
            [nnx.Linear(a, b, kernel_init=_XAVIER, rngs=rngs) for a, b in itertools.pairwise(sizes)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features (B, 64) of examples (B, ...)."""
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


class PooledResNet(nnx.Module):
    """ResNet-18 from scratch and the mean over its feature map.

    Args:
      channels: Channels of the input.
      rngs: The stream "params" is used.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.trunk = resnet.ResNet(18, in_channels=channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features (B, 512) of examples (B, H, W, channels)."""
        return jnp.mean(self.trunk(x), axis=(1, 2))


class Encoders(nnx.Module):
    """The encoders of both modalities.

    Args:
      name: "mlp" or "resnet18".
      shapes: Shapes of one example's audio and picture, (H, W, channels) each.
      rngs: The stream "params" is used.

    Attributes:
      width: Features of each modality.
    """

    def __init__(self, name: str, shapes: Sequence[tuple[int, ...]], *, rngs: nnx.Rngs) -> None:
        def make(shape: tuple[int, ...]) -> Mlp | PooledResNet:
            if name == "mlp":
                height, width, channels = shape
                return Mlp(height * width * channels, rngs=rngs)
            return PooledResNet(shape[-1], rngs=rngs)

        self.audio, self.visual = map(make, shapes)
        self.width = _MLP_WIDTHS[-1] if name == "mlp" else 512

    def __call__(self, audio: jax.Array, visual: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features (B, width) of each modality."""
        return self.audio(audio), self.visual(visual)


def init_head(key: jax.Array, name: str, *, width: int, num_classes: int) -> Any:
    """Xavier-normal layers of a fusion head, without bias at first.

    Args:
      key: Random key.
      name: One of `FUSIONS`.
      width: Features of each modality; the hidden layers of `gated` and `film` have as many.
      num_classes: Classes.

    Returns:
      Name to `fusion.Affine`, as `fuse` wants them.
    """
    sizes = {
        "concat": {"head": (2 * width, num_classes)},
        "sum": {"audio": (width, num_classes), "visual": (width, num_classes)},
        "share": {"head": (width, num_classes)},
        "gated": {
            "gate_layer": (width, width),
            "content_layer": (width, width),
            "head": (width, num_classes),
        },
        "film": {"hidden": (width * width, width), "head": (width, num_classes)},
    }[name]
    keys = jax.random.split(key, len(sizes))
    return {
        layer: fusion.Affine(_XAVIER(k, size), jnp.zeros(size[1]))
        for k, (layer, size) in zip(keys, sizes.items(), strict=True)
    }


def fuse(name: str, head: Any, features: Sequence[jax.Array]) -> fusion.FusedLogits:
    """Logits of both modalities together and of each alone.

    Args:
      name: One of `FUSIONS`.
      head: From `init_head`.
      features: Of audio and picture, (B, width) each.

    Returns:
      Logits (B, classes).
    """
    audio, visual = features
    if name == "concat":
        return fusion.concat_fusion(features, head["head"])
    if name == "sum":
        return fusion.sum_fusion(features, (head["audio"], head["visual"]))
    if name == "share":
        return fusion.sum_fusion(features, (head["head"],) * 2)
    if name == "gated":
        return fusion.gated_fusion(gate=audio, content=visual, **head)
    return fusion.bilinear_fusion(left=audio, right=visual, **head)
