"""The theory on Gaussian errors: which mixture of two predictions errs least."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import multimodal
from experiments.arl import data

PAIRS = ((1.0, 1.0), (1.0, 2.0), (0.25, 1.0), (1.0, 4.0), (0.5, 0.1))
# Deviation of the noise that no mixture removes.
NOISE = 0.5
STEP = 0.02
_SAMPLES = 100_000


class Mixtures(NamedTuple):
    """Errors of w s_0 + (1 - w) s_1.

    Attributes:
      var: Variances of the two predictions, shape (pairs, 2).
      weights: The grid of w, shape (points,).
      errors: Mean squared error, shape (seeds, pairs, points).
      optimum: The weight by inverse variance, shape (pairs,).
      least: The error that theory predicts there, shape (pairs,).
    """

    var: np.ndarray
    weights: np.ndarray
    errors: np.ndarray
    optimum: np.ndarray
    least: np.ndarray


@functools.cache
def mixtures(num_seeds: int = 5, num_samples: int = _SAMPLES) -> Mixtures:
    """Measures the error of every mixture on a grid, for several pairs of variances.

    Args:
      num_seeds: Independent data sets of each pair.
      num_samples: Samples of each.

    Returns:
      The errors.
    """
    var = jnp.array(PAIRS, jnp.float32)
    weights = jnp.linspace(0.0, 1.0, round(1 / STEP) + 1)
    keys = jax.random.split(jax.random.key(0), (num_seeds, len(PAIRS)))
    make = functools.partial(data.gaussian_regression, num_samples=num_samples, noise=NOISE)

    @jax.jit
    def measure(keys: jax.Array) -> jax.Array:
        def errors(key: jax.Array, var: jax.Array) -> jax.Array:
            target, predictions = make(key, var)

            def error(weight: jax.Array) -> jax.Array:
                mixture = weight * predictions[:, 0] + (1 - weight) * predictions[:, 1]
                return jnp.mean(jnp.square(mixture - target))

            return jax.lax.map(error, weights)

        return jax.vmap(jax.vmap(errors), (0, None))(keys, var)

    optimal = multimodal.inverse_variance_weights(var)
    least = NOISE**2 + multimodal.fused_variance(weights=optimal, var=var)
    return Mixtures(
        *map(np.asarray, (var, weights, measure(keys), optimal[:, 0], least)),
    )
