"""Norms, quotients, masked reductions and log-space functions whose gradients are always finite.

A value that is replaced by ``where`` still sends its gradient through the branch not taken, and
zero times infinity is NaN.  The functions here therefore use the *double where*: the argument is
replaced by a harmless one first, the result by the wanted one afterwards.

Half-precision input is accumulated in float32, and reductions return float32 then: a norm or a
mean rounded back to bfloat16 has lost the digits that a ratio or a difference is read from.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, Shaped

Axis = int | tuple[int, ...] | None
Mask = Bool[Array, "..."] | Num[Array, "..."]
Scalars = float | Num[Array, "..."]


def at_least_float32(x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Promotes half-precision, integer and boolean arrays to float32, leaves wider floats alone.

    Args:
        x: array of any shape.

    Returns:
        The same values, in the dtype that sums are accumulated in.
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root whose gradient is 0, instead of infinite, where the argument is not positive.

    ``sqrt(max(x, 0))``, with the derivative at and below 0 defined as 0 (double where).

    Args:
        x: array of any shape; rounding noise below 0 counts as 0.

    Returns:
        Array of the shape and dtype of ``x``, >= 0.
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def safe_norm(
    x: Float[Array, "..."], *, axis: int = -1, keepdims: bool = False, eps: float = 0.0
) -> Float[Array, "..."]:
    """Euclidean length, at least ``eps``, with gradient 0 where the length does not exceed it.

    ``max(||x||_2, eps)``.  The vector is divided by its largest entry before squaring, so that
    neither 1e30 overflows nor 1e-30 vanishes in float32.  The length does not depend on that
    divisor, which is why no gradient needs to pass through it (stop-gradient).

    Args:
        x: vectors along ``axis``, any length including 0.
        axis: the axis to reduce.
        keepdims: whether the reduced axis stays, with size 1.
        eps: lower bound of the result; 0 returns 0 for the zero vector.

    Returns:
        Lengths, ``x`` without ``axis``; float32 for half-precision input.
    """
    x = at_least_float32(x)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0))
    divisor = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    length = divisor * safe_sqrt(jnp.sum(jnp.square(x / divisor), axis=axis, keepdims=True))
    length = jnp.where(length > eps, length, eps)
    return length if keepdims else jnp.squeeze(length, axis)


def normalize(
    x: Float[Array, "*shape"], *, axis: int = -1, eps: float = 1e-12
) -> Float[Array, "*shape"]:
    """Vectors scaled to unit length, the zero vector staying zero.

    ``x / max(||x||_2, eps)``.

    Args:
        x: vectors along ``axis``.
        axis: the axis along which the vectors lie.
        eps: shortest length that is still scaled to 1, > 0.

    Returns:
        Array of the shape of ``x``; float32 for half-precision input.
    """
    return at_least_float32(x) / safe_norm(x, axis=axis, keepdims=True, eps=eps)


def safe_divide(
    *, numerator: Scalars, denominator: Scalars, fallback: float = 0.0
) -> Float[Array, "..."]:
    """Quotient, or ``fallback`` with gradient 0 where the denominator is exactly 0.

    Args:
        numerator: number or array.
        denominator: number or array that broadcasts against ``numerator``.
        fallback: value of anything divided by 0.

    Returns:
        The broadcast quotient; float32 for half-precision and integer input.
    """
    above = at_least_float32(jnp.asarray(numerator))
    below = at_least_float32(jnp.asarray(denominator))
    divisible = below != 0
    return jnp.where(divisible, above / jnp.where(divisible, below, 1), fallback)


def masked_sum(
    values: Num[Array, "..."], mask: Mask, *, axis: Axis = None, keepdims: bool = False
) -> Float[Array, "..."]:
    """Sum of the entries that a mask keeps, whatever stands in the others, NaN included.

    ``sum_i m_i v_i`` with the terms of ``m_i = 0`` left out.

    Args:
        values: array of any shape.
        mask: booleans, or weights >= 0, broadcastable to ``values``.
        axis: axis or axes to reduce, all of them if None.
        keepdims: whether reduced axes stay, with size 1.

    Returns:
        The sums, 0 where nothing is kept; float32 for half-precision input.
    """
    weight, kept = _weight_and_kept(values, mask)
    return jnp.sum(weight * kept, axis=axis, keepdims=keepdims)


def masked_mean(
    values: Num[Array, "..."],
    mask: Mask,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    eps: float = 0.0,
) -> Float[Array, "..."]:
    """Mean of the entries that a mask keeps, 0 for an empty mask.

    ``sum_i m_i v_i / (sum_i m_i + eps)``.

    Args:
        values: array of any shape.
        mask: booleans, or weights >= 0, broadcastable to ``values``.
        axis: axis or axes to reduce, all of them if None.
        keepdims: whether reduced axes stay, with size 1.
        eps: added to the denominator where an author's code does so, >= 0.

    Returns:
        The means, 0 with gradient 0 where nothing is kept; float32 for half-precision input.
    """
    weight, kept = _weight_and_kept(values, mask)
    total = jnp.sum(weight * kept, axis=axis, keepdims=keepdims)
    count = jnp.sum(weight, axis=axis, keepdims=keepdims)
    return safe_divide(numerator=total, denominator=count + eps)


def masked_variance(
    values: Num[Array, "..."],
    mask: Mask,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    ddof: int = 0,
) -> Float[Array, "..."]:
    """Variance of the entries that a mask keeps, 0 where there are not more than ``ddof`` of them.

    ``sum_i m_i (v_i - mean)^2 / (sum_i m_i - ddof)``, in two passes: the difference of squares
    would cancel.  Take its root with `safe_sqrt`, the deviation of a constant group has no slope.

    Args:
        values: array of any shape.
        mask: booleans, or counts >= 0, broadcastable to ``values``.
        axis: axis or axes to reduce, all of them if None.
        keepdims: whether reduced axes stay, with size 1.
        ddof: 0 for the population's variance, 1 for the sample's.

    Returns:
        The variances, >= 0; float32 for half-precision input.
    """
    weight, kept = _weight_and_kept(values, mask)
    centre = masked_mean(kept, weight, axis=axis, keepdims=True)
    total = jnp.sum(weight * jnp.square(kept - centre), axis=axis, keepdims=keepdims)
    freedom = jnp.sum(weight, axis=axis, keepdims=keepdims) - ddof
    return safe_divide(numerator=total, denominator=jnp.maximum(freedom, 0))


def masked_max(
    values: Num[Array, "..."],
    mask: Mask,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    empty: float = -jnp.inf,
) -> Num[Array, "..."]:
    """Largest of the entries that a mask keeps.

    Args:
        values: array of any shape.
        mask: booleans, or weights of which 0 leaves out, broadcastable to ``values``.
        axis: axis or axes to reduce, all of them if None.
        keepdims: whether reduced axes stay, with size 1.
        empty: result where nothing is kept, with gradient 0.

    Returns:
        The maxima; float32 for half-precision and integer input.
    """
    keep, kept = _keep_and_kept(values, mask)
    best = jnp.max(jnp.where(keep, kept, -jnp.inf), axis=axis, keepdims=keepdims, initial=-jnp.inf)
    return jnp.where(jnp.any(keep, axis=axis, keepdims=keepdims), best, empty)


def masked_min(
    values: Num[Array, "..."],
    mask: Mask,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    empty: float = jnp.inf,
) -> Num[Array, "..."]:
    """Smallest of the entries that a mask keeps, the mirror image of `masked_max`.

    Args:
        values: array of any shape.
        mask: booleans, or weights of which 0 leaves out, broadcastable to ``values``.
        axis: axis or axes to reduce, all of them if None.
        keepdims: whether reduced axes stay, with size 1.
        empty: result where nothing is kept, with gradient 0.

    Returns:
        The minima; float32 for half-precision and integer input.
    """
    return -masked_max(-at_least_float32(values), mask, axis=axis, keepdims=keepdims, empty=-empty)


def masked_logsumexp(
    values: Float[Array, "..."], mask: Mask, *, axis: Axis = None, keepdims: bool = False
) -> Float[Array, "..."]:
    """Logarithm of the sum of the exponentials of the entries that a mask keeps.

    ``log sum_{i kept} exp(v_i)``, shifted by the largest kept entry (log-sum-exp).

    Args:
        values: logarithms, -inf allowed.
        mask: booleans, or weights of which 0 leaves out, broadcastable to ``values``.
        axis: axis or axes to reduce, all of them if None.
        keepdims: whether reduced axes stay, with size 1.

    Returns:
        The log-sums, -inf with gradient 0 where nothing (or only -inf) is kept; float32 for
        half-precision input.
    """
    keep, kept = _keep_and_kept(values, mask)
    keep = keep & (kept > -jnp.inf)
    kept = jnp.where(keep, kept, 0)
    largest = masked_max(jax.lax.stop_gradient(kept), keep, axis=axis, keepdims=True, empty=0.0)
    # The inner where keeps exp from overflowing at entries that are left out afterwards.
    terms = jnp.where(keep, jnp.exp(jnp.where(keep, kept - largest, 0)), 0)
    total = jnp.sum(terms, axis=axis, keepdims=True)
    found = total > 0
    result = jnp.where(found, jnp.log(jnp.where(found, total, 1)) + largest, -jnp.inf)
    return result if keepdims else jnp.squeeze(result, axis)


def log1mexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Logarithm of the complementary probability, ``log(1 - exp(x))``, without cancellation.

    ``log(-expm1(x))`` near 0 and ``log1p(-exp(x))`` away from it, parted at -log 2, each with a
    harmless argument where the other is used (double where).

    Args:
        x: log-probabilities, < 0; at 0 the value is -inf and there is no finite slope.

    Returns:
        Array of the shape of ``x``, <= 0; float32 for half-precision input.

    Reference:
        Maechler, "Accurately computing log(1 - exp(-|a|))", 2012, equation 7.
    """
    x = at_least_float32(x)
    near = x > -math.log(2)
    close = jnp.log(-jnp.expm1(jnp.where(near, x, -1)))
    far = jnp.log1p(-jnp.exp(jnp.where(near, -1, x)))
    return jnp.where(near, close, far)


def categorical_entropy(logits: Float[Array, "..."], *, axis: int = -1) -> Float[Array, "..."]:
    """Entropy in nats of the distribution that logits describe.

    ``H = -sum_c p_c log p_c`` with ``p = softmax(logits)`` and ``0 log 0 = 0``.

    Args:
        logits: unnormalised log-probabilities; -inf excludes a class, at least one is finite.
        axis: the axis of the classes.

    Returns:
        Entropies in [0, log C], ``logits`` without ``axis``; float32 for half-precision input.
    """
    logits = at_least_float32(logits)
    possible = logits > -jnp.inf
    # Softmax over finite numbers only: the gradient of -inf minus a maximum is not a number.
    log_probability = jax.nn.log_softmax(jnp.where(possible, logits, 0), axis=axis, where=possible)
    log_probability = jnp.where(possible, log_probability, 0)
    probability = jnp.where(possible, jnp.exp(log_probability), 0)
    return -jnp.sum(probability * log_probability, axis=axis)


def _keep_and_kept(values: Array, mask: Array) -> tuple[Array, Array]:
    """The mask as booleans of the values' shape, and the values with 0 where it is False."""
    values = at_least_float32(values)
    chex.assert_is_broadcastable(mask.shape, values.shape)
    keep = jnp.broadcast_to(mask != 0, values.shape)
    return keep, jnp.where(keep, values, 0)


def _weight_and_kept(values: Array, mask: Array) -> tuple[Array, Array]:
    """The mask as weights of the values' shape, and the values with 0 where it is 0."""
    _, kept = _keep_and_kept(values, mask)
    return jnp.broadcast_to(mask, kept.shape).astype(kept.dtype), kept
