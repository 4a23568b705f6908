"""Many small networks at once: tasks x nonlinearities x widths are axes of every array.

Hidden layers have the shape (C, A, W, B, H): C tasks, A nonlinearities, W widths, B samples, H
units. Narrow networks are padded with units that stay silent. All networks of a seed start from
the same draws, so that they differ in nothing but their task, nonlinearity and width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import activations

_KERNEL, _CHANNELS = 5, 16
Params = Mapping[str, Any]


class Affine(NamedTuple):
    """A layer of every network.

    Attributes:
      kernel: (C, A, W, inputs, outputs).
      bias: (C, A, W, outputs).
    """

    kernel: jax.Array
    bias: jax.Array


class Network:
    """Networks with one to many hidden layers, and perhaps two convolutions before them.

    Args:
      chosen: The nonlinearities.
      config: The experiment's settings.
      num_cells: C.
      dim: Input dimension.
      outputs: Largest number of outputs.
      side: Of the pictures and their channels, for convolutions.
    """

    def __init__(
        self,
        chosen: tuple[activations.Activation, ...],
        config: Any,
        num_cells: int,
        dim: int,
        outputs: int,
        side: tuple[int, int] | None = None,
    ) -> None:
        self._functions = [activation.differentiable() for activation in chosen]
        self._config = config
        self._copies = num_cells, len(chosen)
        self._dim, self._outputs = dim, outputs
        self._side = side if config.network == "conv" else None
        widths = np.array(config.widths)
        # (W, 1, H): a unit beyond its network's width is silent.
        self._mask = (np.arange(widths.max()) < widths[:, None])[:, None].astype(np.float32)

    def init(self, key: jax.Array) -> Params:
        """Initial parameters.

        Args:
          key: Of the seed.

        Returns:
          `conv` and `hidden`, lists of layers, and `readout`.
        """
        keys = iter(jax.random.split(key, 8 + self._config.depth))
        dim = self._dim
        convolutions = []
        if self._side:
            side, channels = self._side
            for inputs in (channels, _CHANNELS):
                layer = self._layer(next(keys), _KERNEL**2 * inputs, _CHANNELS)
                convolutions.append(self._copied(jax.tree.map(lambda x: x[None], layer)))
            # Each convolution is followed by a pooling of 2 x 2.
            dim = (side // 4) ** 2 * _CHANNELS
        hidden = []
        for number in range(self._config.depth):
            key = next(keys)
            fans = [dim if number == 0 else width for width in self._config.widths]
            inputs = dim if number == 0 else max(self._config.widths)
            layers = [self._layer(key, inputs, max(self._config.widths), fan) for fan in fans]
            hidden.append(self._copied(_stacked(layers)))
        key = next(keys)
        readouts = [self._readout(key, width) for width in self._config.widths]
        return {
            "conv": convolutions,
            "hidden": hidden,
            "readout": self._copied(_stacked(readouts)),
        }

    def _layer(self, key: jax.Array, inputs: int, outputs: int, fan: int = 0) -> Affine:
        draw = jax.random.normal if self._config.init == "normal" else _uniform
        first, second = jax.random.split(key)
        scale = (fan or inputs) ** -0.5
        return Affine(scale * draw(first, (inputs, outputs)), scale * draw(second, (outputs,)))

    def _readout(self, key: jax.Array, width: int) -> Affine:
        first, second = jax.random.split(key)
        largest = max(self._config.widths)
        draw = _uniform if self._config.readout_weights == "uniform" else jax.random.normal
        bias = draw(second, (self._outputs,))
        if self._config.readout_weights == "binary":
            signs = jnp.where(jnp.arange(width) % 2, 1.0, -1.0)
            columns = jax.random.split(first, self._outputs)
            kernel = jax.vmap(lambda k: jax.random.permutation(k, signs), out_axes=1)(columns)
        else:
            kernel = draw(first, (largest, self._outputs))[:width]
        silent = jnp.zeros((largest - width, self._outputs))
        return Affine(width**-0.5 * jnp.concatenate([kernel, silent]), width**-0.5 * bias)

    def _copied(self, layer: Affine) -> Affine:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*self._copies, *x.shape)), layer)

    def hidden(self, params: Params, inputs: jax.Array) -> list[jax.Array]:
        """What each layer represents.

        Args:
          params: The parameters.
          inputs: Of each task (C, B, D).

        Returns:
          One array a layer (C, A, W, B, features), convolutions first.
        """
        layers: list[jax.Array] = []
        x = inputs[:, None, None]
        for layer in params["conv"]:
            x = self._convolved(layer, x, first=not layers)
            layers.append(x)
        for layer in params["hidden"]:
            inside = jnp.matmul(x, layer.kernel) + layer.bias[..., None, :]
            x = self._activated(inside)
            if not self._mask.all():
                x = x * self._mask
            layers.append(x)
        return layers

    def logits(self, params: Params, last: jax.Array) -> jax.Array:
        """The readout.

        Args:
          params: The parameters.
          last: The last layer (C, A, W, B, H).

        Returns:
          Log odds (C, A, W, B, K).
        """
        readout = params["readout"]
        return jnp.matmul(last, readout.kernel) + readout.bias[..., None, :]

    def _activated(self, inside: jax.Array) -> jax.Array:
        rows = [function(inside[:, i]) for i, function in enumerate(self._functions)]
        return rows[0][:, None] if len(rows) == 1 else jnp.stack(rows, axis=1)

    def _convolved(self, layer: Affine, x: jax.Array, *, first: bool) -> jax.Array:
        """A 5 x 5 convolution as a product of patches, the nonlinearity, and 2 x 2 pooling."""
        assert self._side is not None
        side, channels = self._side if first else (self._side[0] // 2, _CHANNELS)
        pictures = x.reshape(*x.shape[:4], side, side, channels)
        edge = _KERNEL // 2
        bordered = jnp.pad(pictures, [(0, 0)] * 4 + [(edge, edge)] * 2 + [(0, 0)])
        patches = jnp.concatenate(
            [
                bordered[..., i : i + side, j : j + side, :]
                for i in range(_KERNEL)
                for j in range(_KERNEL)
            ],
            axis=-1,
        )
        flat = patches.reshape(*x.shape[:3], -1, patches.shape[-1])
        inside = jnp.matmul(flat, layer.kernel) + layer.bias[..., None, :]
        active = self._activated(inside)
        half = side // 2
        active = active.reshape(*active.shape[:3], x.shape[3], side, side, _CHANNELS)
        tiles = active[..., : 2 * half, : 2 * half, :].reshape(
            *active.shape[:4], half, 2, half, 2, _CHANNELS
        )
        pooled = jnp.max(tiles, axis=(-4, -2))
        return pooled.reshape(*pooled.shape[:4], -1)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def _stacked(layers: list[Affine]) -> Affine:
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)
