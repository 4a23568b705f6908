"""The views of a batch: key and basic, normal, strong, each with its own draws."""

from __future__ import annotations

from typing import Any

import jax

from experiments.hiclr import augmentations, skeletons
from experiments.hiclr.settings import THREE

NAMES = ("basic", "normal", "strong")


def seen(x: jax.Array, stream: str, skeleton: skeletons.Skeleton) -> jax.Array:
    """What the encoder of a stream sees of joint positions.

    Args:
      x: (..., C, T, V, M).
      stream: "joint", "motion" or "bone".
      skeleton: Which joint is which.

    Returns:
      (..., C, T, V, M).
    """
    if stream == THREE:
        raise ValueError("one stream at a time")
    if stream == "motion":
        return augmentations.motion_stream(x)
    if stream == "bone":
        return augmentations.bone_stream(x, skeleton.parents)
    return x


class Augmenter:
    """Makes the views by the settings.

    Args:
      config: The experiment's settings.
      skeleton: Which joint is which.
      stream: What the encoder sees.
    """

    def __init__(self, config: Any, skeleton: skeletons.Skeleton, stream: str) -> None:
        self._config = config
        self._skeleton = skeleton
        self._stream = stream

    def key_view(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """The view of the key encoder: the basic set.

        Args:
          key: Random key.
          x: Clips (N, C, T, V, M).

        Returns:
          (N, C, T, V, M).
        """
        return self._stream_of(self._basic(key, x))

    def growing(self, key: jax.Array, x: jax.Array, fill: jax.Array, count: int) -> list[jax.Array]:
        """The views of the query encoder.

        Args:
          key: Random key.
          x: Clips (N, C, T, V, M).
          fill: The trained value of masked joints.
          count: How many of basic, normal and strong.

        Returns:
          Weakest first, each (N, C, T, V, M).
        """
        keys = jax.random.split(key, 3)
        makers = (self.key_view, self._normal, lambda k, c: self._strong(k, c, fill))
        return [make(k, x) for make, k in zip(makers[:count], keys[:count], strict=True)]

    def _basic(self, key: jax.Array, x: jax.Array) -> jax.Array:
        def one(key: jax.Array, x: jax.Array) -> jax.Array:
            return augmentations.basic(
                key,
                x,
                shear_amplitude=self._config.shear_amplitude,
                crop_ratio=self._config.crop_ratio,
            )

        return jax.vmap(one)(jax.random.split(key, len(x)), x)

    def _normal_set(self, key: jax.Array, x: jax.Array) -> jax.Array:
        def one(key: jax.Array, x: jax.Array) -> jax.Array:
            return augmentations.normal(
                key,
                x,
                mirror=self._skeleton.mirror,
                normalized_blur=self._config.kernel_normalised_blur,
            )

        basic_key, normal_key = jax.random.split(key)
        if self._config.growing:
            x = self._basic(basic_key, x)
        return jax.vmap(one)(jax.random.split(normal_key, len(x)), x)

    def _normal(self, key: jax.Array, x: jax.Array) -> jax.Array:
        return self._stream_of(self._normal_set(key, x))

    def _strong(self, key: jax.Array, x: jax.Array, fill: jax.Array) -> jax.Array:
        config = self._config
        normal_key, own_key = jax.random.split(key)
        if config.growing:
            x = self._normal_set(normal_key, x)
        if config.strong_aug == "adain":
            style = x[jax.random.permutation(own_key, len(x))]
            x = augmentations.skele_adain(content=x, style=style, per_frame=config.adain_per_frame)
        x = self._stream_of(x)
        if "mask" in config.strong_aug:
            kept = augmentations.random_joint_mask(
                own_key, frames=x.shape[2], joints=x.shape[3], ratio=config.mask_ratio
            )
            x = augmentations.apply_joint_mask(x, kept, fill)
        return x

    def _stream_of(self, x: jax.Array) -> jax.Array:
        return seen(x, self._stream, self._skeleton)
