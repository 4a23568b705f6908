"""Error vectors of equilibrium propagation and of its baselines, and gradients from them.

An error vector ``delta`` is shaped like the states and tells each neuron which way its activity
raises the loss.  With ``W = dH/dr`` and ``D = diag(phi'(u*))`` at the fixed point,

    equilibrium propagation:  delta_EP = (D^-1 - W)^-1 g
    backpropagation:          delta_BP = (D^-1 - W^T)^-1 g

which differ by the antisymmetric part of W alone.  Every estimator turns its ``delta`` into a
gradient by the same local rule, `ep_grad`.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int, PyTree

from asym import numerics
from asym.equilibrium.fields import (
    Damping,
    Params,
    States,
    VectorField,
    activate,
    next_states,
    promote,
    relax,
)


def rbp_error_vector(
    vf: VectorField,
    params: Params,
    u_free: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
    num_steps: int | Int[Array, ""],
) -> States:
    """Error vector of recurrent backpropagation, a fixed point of the adjoint dynamics.

    ``delta <- (dF/du)^T delta + delta + dL/du``, from 0; converges to ``(-dF/du)^-T dL/du``,
    which is ``(D^-1 - W^T)^-1 g``.

    Args:
        vf: the network.
        params: its parameters.
        u_free: free states (B, ...); half-precision ones are promoted to float32.
        x: input (B, ...).
        y: targets (B, ...).
        num_steps: T2, number of iterations.

    Returns:
        The error vector, shaped like ``u_free``; NaN and infinities of a diverging iteration are
        replaced by numbers.

    Reference:
        arXiv 2309.02214, ``rec_bp`` of the released code.
    """
    pull_back, source = _adjoint(vf, params, u_free, x=x, y=y)

    def step(delta: States) -> States:
        return jax.tree.map(jnp.add, pull_back(delta), source)

    return relax(step, jax.tree.map(jnp.zeros_like, source), num_steps)


def neumann_rbp_error_vector(
    vf: VectorField,
    params: Params,
    u_free: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
    num_steps: int | Int[Array, ""],
) -> States:
    """Error vector of recurrent backpropagation as a Neumann series.

    ``delta = sum_{k=0}^{T2} v_k`` with ``v_0 = dL/du`` and ``v_{k+1} = v_k + (dF/du)^T v_k``;
    one term more than `rbp_error_vector` after as many steps.

    Args:
        vf: the network.
        params: its parameters.
        u_free: free states (B, ...); half-precision ones are promoted to float32.
        x: input (B, ...).
        y: targets (B, ...).
        num_steps: T2, number of terms after the first.

    Returns:
        The error vector, shaped like ``u_free``; NaN and infinities of a diverging series are
        replaced by numbers.

    Reference:
        arXiv 2309.02214, ``neu_rbp`` of the released code.
    """
    pull_back, source = _adjoint(vf, params, u_free, x=x, y=y)

    def step(carry: tuple[States, States]) -> tuple[States, States]:
        term, total = carry
        term = pull_back(term)
        return term, jax.tree.map(jnp.add, total, term)

    return relax(step, (source, source), num_steps)[1]


def ep_grad(
    vf: VectorField,
    params: Params,
    *,
    u_free: States,
    delta: States,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
) -> Params:
    """Gradient of the mean loss that an error vector stands for, local to each connection.

    ``(1/B) (dF/dtheta)^T delta + (1/B) dL/dtheta`` at fixed states: a connection from i to j gets
    ``r_i delta_j``, the readout the second term alone.

    Args:
        vf: the network.
        params: its parameters theta.
        u_free: free states (B, ...), held constant.
        delta: error vector, shaped like ``u_free``, held constant.
        x: input (B, ...).
        y: targets (B, ...).

    Returns:
        The gradient, shaped like ``params``, in at least float32.

    Raises:
        AssertionError: if states and error vector differ in shape.

    Reference:
        arXiv 2309.02214, learning rule; in the code every estimator shares it.
    """
    chex.assert_trees_all_equal_shapes(u_free, delta)
    activities = jax.lax.stop_gradient(activate(vf, promote(u_free)))
    delta = jax.lax.stop_gradient(promote(delta))

    def work(p: Params) -> Array:
        drive = vf.drive(p, activities, x)
        along = jax.tree.map(lambda h, d: jnp.sum(h * d), drive, delta)
        return jax.tree.reduce(jnp.add, along) + vf.loss(p, activities, y)

    return jax.tree.map(lambda g: g / y.shape[0], jax.grad(work)(promote(params)))


def bp_grad(
    vf: VectorField,
    params: Params,
    u_free: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
    num_steps: int,
    damping: Damping = 1.0,
    unroll: int = 1,
) -> Params:
    """Gradient of the mean loss by backpropagation through the last steps of the free phase.

    Reverse mode through ``num_steps`` unrolled steps without a nudge, which start at the free
    states as a constant.

    Args:
        vf: the network.
        params: its parameters.
        u_free: free states (B, ...), held constant.
        x: input (B, ...).
        y: targets (B, ...).
        num_steps: T2, a Python integer.
        damping: as in `relax`.
        unroll: as in `relax`.

    Returns:
        The gradient, shaped like ``params``, in at least float32.

    Reference:
        arXiv 2309.02214, baseline ``bp`` of the released code.
    """
    start = jax.lax.stop_gradient(promote(u_free))

    def mean_loss(p: Params) -> Array:
        pace: dict[str, Any] = {"damping": damping, "unroll": unroll}
        last = relax(lambda u: next_states(vf, p, u, x=x), start, num_steps, **pace)
        return vf.loss(p, activate(vf, last), y) / y.shape[0]

    return jax.grad(mean_loss)(promote(params))


def exact_ep_error_vector(
    weights: Float[Array, "*batch n n"],
    *,
    slope: Float[Array, "*batch n"],
    gradient: Float[Array, "*batch n"],
) -> Float[Array, "*batch n"]:
    """Limit of `ep_error_vector` for many steps, ``(D^-1 - W)^-1 g``.

    Solved as ``(I - D W) delta = D g``, which saturated units with slope 0 do not disturb.

    Args:
        weights: ``W = dH/dr``, influence of the activity of column j on the input of row i
            (..., n, n): `activity_jacobian` plus the identity.
        slope: ``phi'(u*)`` (..., n).
        gradient: ``g = dL/dr`` (..., n).

    Returns:
        The error vectors (..., n).

    Raises:
        AssertionError: if the sizes do not agree.

    Reference:
        arXiv 2309.02214, error of equilibrium propagation in activity coordinates.
    """
    chex.assert_equal_shape([slope, gradient])
    chex.assert_equal(weights.shape[-2:], (slope.shape[-1],) * 2)
    weights, slope, gradient = map(numerics.at_least_float32, (weights, slope, gradient))
    resistance = jnp.eye(slope.shape[-1]) - slope[..., None] * weights
    return jnp.linalg.solve(resistance, (slope * gradient)[..., None])[..., 0]


def exact_bp_error_vector(
    weights: Float[Array, "*batch n n"],
    *,
    slope: Float[Array, "*batch n"],
    gradient: Float[Array, "*batch n"],
) -> Float[Array, "*batch n"]:
    """Limit of `rbp_error_vector` for many steps, ``(D^-1 - W^T)^-1 g``.

    Equal to `exact_ep_error_vector` if and only if W is symmetric where errors pass.

    Args:
        weights: ``W = dH/dr`` (..., n, n), not transposed.
        slope: ``phi'(u*)`` (..., n).
        gradient: ``g = dL/dr`` (..., n).

    Returns:
        The error vectors (..., n).

    Raises:
        AssertionError: if the sizes do not agree.

    Reference:
        arXiv 2309.02214, error of implicit differentiation in activity coordinates.
    """
    return exact_ep_error_vector(jnp.swapaxes(weights, -1, -2), slope=slope, gradient=gradient)


def error_cosine(*, estimate: States, reference: States) -> PyTree[Float[Array, " batch"]]:
    """Cosine of two error vectors, by layer and sample.

    ``<a, b> / (||a|| ||b||)``, 0 where either vanishes.

    Args:
        estimate: error vector to judge, leaves (B, ...).
        reference: error vector to judge by, same shapes.

    Returns:
        One array (B,) a layer, in [-1, 1].

    Raises:
        AssertionError: if the shapes differ.

    Reference:
        arXiv 2309.02214, alignment of the errors of equilibrium and backpropagation.
    """
    chex.assert_trees_all_equal_shapes(estimate, reference)

    def cosine(a: Array, b: Array) -> Array:
        rows = (numerics.normalize(v.reshape(v.shape[0], -1)) for v in (a, b))
        return jnp.clip(jnp.sum(jnp.multiply(*rows), axis=1), -1, 1)

    return jax.tree.map(cosine, estimate, reference)


def _adjoint(
    vf: VectorField, params: Params, u_free: States, *, x: Array, y: Array
) -> tuple[Callable[[States], States], States]:
    """The map ``v -> v + (dF/du)^T v``, which keeps to finite numbers, and ``dL/du``."""
    params, u_free = promote(params), promote(u_free)
    _, pull_back = jax.vjp(lambda u: next_states(vf, params, u, x=x), u_free)
    source = jax.grad(lambda u: vf.loss(params, activate(vf, u), y))(u_free)

    def finite_pull_back(v: States) -> States:
        return jax.tree.map(jnp.nan_to_num, pull_back(v)[0])

    return finite_pull_back, source
