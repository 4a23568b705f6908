"""Seeds are a batch dimension: one key a seed, and every number with its standard error."""

from typing import Any

import jax
import numpy as np


def keys(seed: int, num_seeds: int) -> jax.Array:
    """One key a seed: the key of seed s is the same in a run of one seed and in a run of many.

    Args:
      seed: First seed.
      num_seeds: Number of seeds.

    Returns:
      Typed keys of seeds seed .. seed + num_seeds - 1, shape (num_seeds,).
    """
    return jax.vmap(jax.random.key)(np.arange(seed, seed + num_seeds, dtype=np.uint32))


def summary(per_seed: Any) -> dict[str, Any]:
    """Mean and standard error over seeds.

    Args:
      per_seed: One value a seed, shape (num_seeds,).

    Returns:
      `mean`, `standard_error` (sample standard deviation / sqrt(num_seeds); None for one seed,
      where it is unknown) and `per_seed`.
    """
    values = np.asarray(per_seed, dtype=np.float64)
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else None
    return {
        "mean": float(values.mean()),
        "standard_error": None if error is None else float(error),
        "per_seed": [float(v) for v in values],
    }
