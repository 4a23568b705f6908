"""Activities and pooling that are complex-differentiable, so that a nudge may be complex."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact


def shifted_sigmoid(z: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """Sigmoid of slope 1 at one half.

    ``phi(z) = 1 / (1 + exp(2 - 4 z))``; ``phi(1/2) = 1/2``, ``phi'(1/2) = 1``.  Its poles
    ``1/2 + i pi (2k + 1) / 4`` bound the nudges for which a Cauchy integral converges.

    Args:
        z: real or complex states, any shape.

    Returns:
        Activities, in (0, 1) for real states; shape and dtype of ``z``.

    Reference:
        arXiv 2309.02214, activation of the fully connected networks (``sigmoid`` in the code).
    """
    return _logistic(4 * z - 2)


def dsilu(z: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """Smooth ramp from 0 to 1, clipped like a hard sigmoid but holomorphic near the real axis.

    ``phi(z) = z s(z) / 2 + (1 - z / 2) s(z - 2)`` with ``s`` the logistic function;
    ``phi(1) = 1/2``.

    Args:
        z: real or complex states, any shape.

    Returns:
        Activities; shape and dtype of ``z``.

    Reference:
        arXiv 2309.02214, activation of the convolutional network; ``a = 1`` in the code of
        arXiv 2209.00530.
    """
    upper = _logistic(z - 2)
    # The difference first: the two terms in z cancel, and with them its digits, for large z.
    return 0.5 * z * (_logistic(z) - upper) + upper


def softmax_pool(
    v: Inexact[Array, "batch height width channels"],
    window: tuple[int, int] = (2, 2),
    strides: tuple[int, int] = (2, 2),
    temperature: float | int | Float[Array, ""] = 1.0,
) -> Inexact[Array, "batch rows columns channels"]:
    """Mean over windows weighted by the softmax of the values, a holomorphic max-pooling.

    ``p = sum_W v exp(v / T) / sum_W exp(v / T)`` over each window W, without padding.  T -> 0
    gives the maximum, T -> infinity the mean.

    Args:
        v: real or complex maps (B, H, W, C).
        window: rows and columns of a window, not larger than the map.
        strides: rows and columns between windows.
        temperature: T > 0.

    Returns:
        Pooled maps (B, (H - w_h) // s_h + 1, (W - w_w) // s_w + 1, C), dtype of ``v``.

    Raises:
        AssertionError: if ``v`` is no batch of maps or smaller than a window.

    Reference:
        arXiv 2209.00530 and 2309.02214, pooling of the convolutional network.
    """
    chex.assert_rank(v, 4)
    chex.assert_scalar_non_negative(v.shape[1] - window[0])
    chex.assert_scalar_non_negative(v.shape[2] - window[1])
    rows = (v.shape[1] - window[0]) // strides[0] + 1
    columns = (v.shape[2] - window[1]) // strides[1] + 1
    members = jnp.stack(
        [
            v[
                :,
                i : i + (rows - 1) * strides[0] + 1 : strides[0],
                j : j + (columns - 1) * strides[1] + 1 : strides[1],
            ]
            for i in range(window[0])
            for j in range(window[1])
        ]
    )
    # The shift cancels, so it may be any real number and needs no gradient (log-sum-exp).
    largest = jax.lax.stop_gradient(jnp.max(jnp.real(members), axis=0))
    weights = jnp.exp((members - largest) / temperature).astype(v.dtype)
    return jnp.sum(members * weights, axis=0) / jnp.sum(weights, axis=0)


def _logistic(z: Array) -> Array:
    """Logistic function whose value and derivative overflow nowhere."""
    if not jnp.iscomplexobj(z):
        return jax.nn.sigmoid(z)
    right = jnp.real(z) >= 0
    decaying = jnp.exp(jnp.where(right, -z, z))
    return jnp.where(right, 1, decaying) / (1 + decaying)
