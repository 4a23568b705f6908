"""Nonlinearities told apart by their tails, and the gradient that each lets through.

A unit that is flat on one side and steep on the other (ReLU) learns from the points on its steep
side alone; a unit that is flat on both sides (tanh, clipped ReLU) learns from a band that every
point may cross.  Forward and derivative come in pairs, because conventions at the kinks matter.

Reference:
    Alleman, Lindsey and Fusi, "Task structure and nonlinearity jointly determine learned
    representational geometry", ICLR 2024, arXiv 2401.13558.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Function = Callable[[Array], Array]


class Activation(NamedTuple):
    """A nonlinearity.

    Attributes:
        value: ``phi``, elementwise.
        derivative: ``phi'``, elementwise, with its convention at kinks.
    """

    value: Function
    derivative: Function

    def differentiable(self) -> Function:
        """``phi`` with ``phi'`` as the derivative that jax uses, kinks included.

        Returns:
            A function of one array.
        """
        function = jax.custom_jvp(self.value)
        function.defjvps(lambda tangent, _, u: self.derivative(u) * tangent)
        return function


TANH = Activation(jnp.tanh, lambda u: 1 - jnp.square(jnp.tanh(u)))
IDENTITY = Activation(lambda u: u, jnp.ones_like)
SOFTPLUS = Activation(jax.nn.softplus, jax.nn.sigmoid)


def leaky_relu(slope: float) -> Activation:
    """``u`` where u > 0, else ``slope u``; the derivative at 0 is the slope.

    Args:
        slope: of the left side; 0 makes it the ReLU.

    Returns:
        The pair.

    Reference:
        arXiv 2401.13558, activation functions.
    """
    return Activation(
        lambda u: jnp.where(u > 0, u, slope * u),
        lambda u: jnp.where(u > 0, 1, slope).astype(u.dtype),
    )


RELU = leaky_relu(0.0)


def clipped_relu(bound: float) -> Activation:
    """``min(max(u, 0), bound)``: flat on both sides; the derivative is 1 on (0, bound].

    Args:
        bound: largest value, > 0; 6 is ReLU6.

    Returns:
        The pair.

    Reference:
        arXiv 2401.13558, the saturating ReLU.
    """
    return Activation(
        lambda u: jnp.minimum(jnp.maximum(u, 0), bound),
        lambda u: ((u > 0) & (u <= bound)).astype(u.dtype),
    )


def shifted_relu(shift: float) -> Activation:
    """``max(u + shift, 0)``; the derivative at ``-shift`` is 0.

    Args:
        shift: moves the kink to the left if > 0.

    Returns:
        The pair.

    Reference:
        arXiv 2401.13558, the shifted ReLU.
    """
    return Activation(
        lambda u: jnp.maximum(u + shift, 0), lambda u: (u + shift > 0).astype(u.dtype)
    )


class HiddenGradient(NamedTuple):
    """Gradient of the loss with respect to a hidden layer.

    Attributes:
        weights: (D, H).
        bias: (H,).
    """

    weights: Float[Array, "dim units"]
    bias: Float[Array, " units"]


def hidden_gradient(
    *,
    inputs: Float[Array, "batch dim"],
    slope: Float[Array, "batch units"],
    error: Float[Array, "batch outputs"],
    readout: Float[Array, "units outputs"],
) -> HiddenGradient:
    """Gradient of a hidden layer under a fixed readout, one flow for each unit.

    ``dL/dw_i = -mean_b (sum_o error_bo J_io) phi'(u_bi) x_b``: points where a unit is flat do not
    move it.  With the means of the conditions as inputs it is the unit's expected gradient.

    Args:
        inputs: ``x`` (B, D).
        slope: ``phi'(u)`` (B, H).
        error: target minus predicted probability (B, O).
        readout: J (H, O).

    Returns:
        The gradient to descend, of the loss that is a mean over the batch and a SUM over outputs.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2401.13558, weight-space picture; the authors' code reports the mean over outputs and
        updates by this gradient of the sum.
    """
    chex.assert_equal_shape_prefix([inputs, slope, error], 1)
    arriving = -(error @ readout.T) * slope / inputs.shape[0]
    return HiddenGradient(inputs.T @ arriving, jnp.sum(arriving, axis=0))
