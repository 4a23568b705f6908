"""Graphs by continuous optimisation: the objectives of NOTEARS and GOLEM, against which to compare.

Both make a graph's acyclicity a smooth number and treat the two kinds of error alike: weights below
a threshold are cut, whether they are edges or not.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from asym import numerics
from asym.causal import structure

# exp(A) = exp(A / 2^8)^(2^8), with the series of A / 2^8 up to the sixth power: five digits are
# left at a norm of 100, ten at a norm of 16.
_SQUARINGS = 8

Scalar = float | Float[Array, ""]


@jax.custom_jvp
def acyclicity(weights: Float[Array, "node column"]) -> Float[Array, ""]:
    """How far a weighted graph is from having no cycle.

    ``h(B) = tr exp(B o B) - N``: the weight of all closed walks, which is 0 without cycles.

    Args:
        weights: B (N, N), the largest row sum of squares up to about 100.

    Returns:
        h >= 0, with the derivative ``2 exp(B o B)^T o B``; float32 for half-precision input.

    Raises:
        AssertionError: if the matrix is not square.

    Reference:
        Zheng, Aragam, Ravikumar and Xing, "DAGs with NO TEARS", 2018, theorem 1.
    """
    return jnp.trace(_exponential_of_squares(weights)) - weights.shape[0]


@acyclicity.defjvp
def _acyclicity_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The trace's derivative is the exponential itself: no need to go back through the squarings.
    (weights,), (direction,) = primals, tangents
    exponential = _exponential_of_squares(weights)
    change = jnp.sum(2 * exponential.T * weights * direction)
    return jnp.trace(exponential) - weights.shape[0], change.astype(exponential.dtype)


def golem_objective(
    weights: Float[Array, "node column"],
    *,
    gram: Float[Array, "node node"],
    sparsity: Scalar,
    acyclic: Scalar,
) -> Float[Array, ""]:
    """Likelihood of a graph with one unknown noise variance, with soft penalties.

    ``N/2 log ||X - B^T X||^2 - log |det(I - B)| + l1 ||B||_1 + l2 h(B)``, where the data enter
    through ``G = X X^T`` alone.

    Args:
        weights: B (N, N), the diagonal 0.
        gram: G (N, N) of centred observations X (N, S).
        sparsity: l1 >= 0.
        acyclic: l2 >= 0.

    Returns:
        The objective; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        Ng, Ghassami and Zhang, "On the role of sparsity and DAG constraints for learning linear
        DAGs", 2020, equation 3 (equal variances).
    """
    chex.assert_equal_shape([weights, gram])
    weights = numerics.at_least_float32(weights)
    fit = weights.shape[0] / 2 * jnp.log(_squared_residual(weights, gram))
    volume = jnp.linalg.slogdet(jnp.eye(weights.shape[0], dtype=weights.dtype) - weights)[1]
    return fit - volume + sparsity * jnp.sum(jnp.abs(weights)) + acyclic * acyclicity(weights)


def notears_objective(
    weights: Float[Array, "node column"],
    *,
    gram: Float[Array, "node node"],
    samples: int | float | Num[Array, ""],
    sparsity: Scalar,
    multiplier: Scalar,
    penalty: Scalar,
) -> Float[Array, ""]:
    """Least squares with a constraint of acyclicity, as an augmented Lagrangian.

    ``||X - B^T X||^2 / (2 S) + l1 ||B||_1 + a h(B) + r/2 h(B)^2``.

    Args:
        weights: B (N, N), the diagonal 0.
        gram: ``G = X X^T`` (N, N) of centred observations X (N, S).
        samples: S.
        sparsity: l1 >= 0.
        multiplier: a of the constraint h = 0.
        penalty: r >= 0.

    Returns:
        The objective; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        Zheng, Aragam, Ravikumar and Xing, "DAGs with NO TEARS", 2018, equations 10 and 11.
    """
    chex.assert_equal_shape([weights, gram])
    weights = numerics.at_least_float32(weights)
    fit = _squared_residual(weights, gram) / (2 * jnp.asarray(samples))
    cycles = acyclicity(weights)
    constraint = multiplier * cycles + penalty / 2 * cycles**2
    return fit + sparsity * jnp.sum(jnp.abs(weights)) + constraint


def threshold_to_dag(
    weights: Float[Array, "node column"], *, threshold: Scalar
) -> Float[Array, "node column"]:
    """Cuts weights below a threshold, and then the smallest ones until no cycle is left.

    Args:
        weights: B (N, N).
        threshold: weights with ``|b| < threshold`` become 0, >= 0.

    Returns:
        Weights (N, N) of an acyclic graph.

    Raises:
        AssertionError: if the matrix is not square.

    Reference:
        Ng, Ghassami and Zhang, 2020, section 4.1 (post-processing).
    """
    size = jnp.abs(weights)
    kept = jnp.where((size < threshold) | jnp.eye(weights.shape[0], dtype=bool), 0, weights)

    def drop(kept: Array) -> Array:
        size = jnp.where(kept == 0, jnp.inf, jnp.abs(kept))
        return kept.at[jnp.unravel_index(jnp.argmin(size), size.shape)].set(0)

    return jax.lax.while_loop(lambda kept: ~structure.is_dag(kept != 0), drop, kept)


def _squared_residual(weights: Array, gram: Array) -> Array:
    """``||X - B^T X||^2`` from the products of the data."""
    away = jnp.eye(weights.shape[0], dtype=weights.dtype) - weights
    return jnp.sum(away * (gram @ away))


def _exponential_of_squares(weights: Array) -> Array:
    """``exp(B o B)`` by scaling and squaring a short series."""
    chex.assert_shape(weights, (weights.shape[0],) * 2)
    weights = numerics.at_least_float32(weights)
    identity = jnp.eye(weights.shape[0], dtype=weights.dtype)
    one = weights * weights / 2**_SQUARINGS
    two = one @ one
    three = two @ one
    high = identity / 6 + one / 24 + two / 120 + three / 720
    power = identity + one + two / 2 + three @ high
    for _ in range(_SQUARINGS):
        power = power @ power
    return power
