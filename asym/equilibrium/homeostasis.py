"""Homeostasis of the Jacobian: making a network's linear response symmetric, and measuring it.

All of it concerns ``J = d[H(r) - r] / dr`` at the free activities: the Jacobian in activity
coordinates, with the activation bypassed.  Its antisymmetric part is what separates the error
vectors of equilibrium propagation from those of backpropagation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from asym import numerics
from asym.equilibrium.fields import Params, States, VectorField, promote

BypassedField = Callable[[Params, States], States]


def bypassed_field(vf: VectorField, x: Inexact[Array, "..."]) -> BypassedField:
    """The vector field with the activation bypassed, ``(params, r) -> H(r) - r``.

    Args:
        vf: the network.
        x: input (B, ...).

    Returns:
        The function whose derivative in ``r`` is J.

    Reference:
        arXiv 2309.02214, released code: the ``- u`` of the field becomes ``- r``.
    """

    def field(params: Params, activities: States) -> States:
        return jax.tree.map(jnp.subtract, vf.drive(params, activities, x), activities)

    return field


def gaussian_probes(key: PRNGKeyArray, states: States, num_draws: int) -> States:
    """Independent standard normal directions for `homeostatic_grad`.

    Args:
        key: random key.
        states: states (B, ...) that the directions are shaped like.
        num_draws: K, the paper's code takes 5.

    Returns:
        Directions with leaves (K, B, ...), in at least float32.
    """
    leaves, structure = jax.tree.flatten(states)
    ends = [num_draws * sum(leaf.size for leaf in leaves[: i + 1]) for i in range(len(leaves))]
    # One draw for all layers: each call of the generator has a cost of its own.
    drawn = jax.random.normal(key, (ends[-1],), jnp.result_type(*leaves, jnp.float32))
    parts = [
        part.reshape(num_draws, *leaf.shape).astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for part, leaf in zip(jnp.split(drawn, ends[:-1]), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)


def homeostatic_loss(
    vf_act: BypassedField, params: Params, *, r_free: States, eps: States
) -> Float[Array, ""]:
    """Asymmetry of the Jacobian seen along one random direction, without any transpose.

    ``l = (v.v - eps.w) / n`` with ``v = J eps`` and ``w = J v``, two Jacobian-vector products,
    averaged over the batch.  For ``eps ~ N(0, I)`` its expectation is `homeostatic_loss_exact`.
    Differentiate it with respect to ``params``; the activities are held constant.

    Args:
        vf_act: field with the activation bypassed, as of `bypassed_field`.
        params: parameters of the network.
        r_free: activities at the free fixed point, leaves (B, ...).
        eps: directions, shaped like ``r_free``, one for each sample.

    Returns:
        The loss; a single draw may be negative.

    Raises:
        AssertionError: if activities and directions differ in shape.

    Reference:
        arXiv 2309.02214, homeostatic loss; the division by n is the code's, not the paper's.
    """
    chex.assert_trees_all_equal_shapes(r_free, eps)
    params, r_free, eps = promote((params, r_free, eps))
    _, product = jax.linearize(lambda r: vf_act(params, r), jax.lax.stop_gradient(r_free))
    first = product(eps)
    second = product(first)
    terms = jax.tree.map(lambda e, v, w: jnp.sum(v * v - e * w), eps, first, second)
    # Sums over batch and units at once: their product is the number of entries.
    entries = sum(leaf.size for leaf in jax.tree.leaves(r_free))
    return jax.tree.reduce(jnp.add, terms) / entries


def homeostatic_grad(
    vf_act: BypassedField, params: Params, *, r_free: States, eps: States
) -> tuple[Float[Array, ""], Params]:
    """Homeostatic loss and gradient, both averaged over several independent draws.

    Args:
        vf_act: field with the activation bypassed, as of `bypassed_field`.
        params: parameters of the network.
        r_free: activities at the free fixed point, leaves (B, ...).
        eps: directions as of `gaussian_probes`, leaves (K, B, ...).

    Returns:
        The mean loss and its gradient, shaped like ``params``, in which NaN and infinities are
        replaced by numbers.

    Raises:
        AssertionError: if activities and directions do not agree in shape.

    Reference:
        arXiv 2309.02214, released code (K = 5), to be added to the gradient of the task.
    """

    def mean_loss(p: Params) -> Array:
        losses = jax.vmap(lambda e: homeostatic_loss(vf_act, p, r_free=r_free, eps=e))(eps)
        return jnp.mean(losses)

    loss, gradient = jax.value_and_grad(mean_loss)(promote(params))
    return loss, jax.tree.map(jnp.nan_to_num, gradient)


def homeostatic_loss_exact(jacobian: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """Asymmetry of a Jacobian, ``||J - J^T||_F^2 / (2n) = (||J||_F^2 - tr J^2) / n``.

    Args:
        jacobian: J (..., n, n).

    Returns:
        Losses >= 0 (...), 0 for symmetric matrices; float32 for half-precision input.

    Raises:
        AssertionError: if the matrices are not square.

    Reference:
        arXiv 2309.02214, homeostatic loss; the division by n is the code's, not the paper's.
    """
    chex.assert_equal(jacobian.shape[-1], jacobian.shape[-2])
    jacobian = numerics.at_least_float32(jacobian)
    difference = jacobian - jnp.swapaxes(jacobian, -1, -2)
    return jnp.sum(jnp.square(difference), axis=(-2, -1)) / (2 * jacobian.shape[-1])


def activity_jacobian(
    vf_act: BypassedField, params: Params, *, r_free: States
) -> Float[Array, "batch n n"]:
    """Dense Jacobian of each sample, ``J_ij = d[H(r) - r]_i / dr_j``.

    One forward-mode product for each of the n units, for the whole batch at once: for n up to
    about a thousand.

    Args:
        vf_act: field with the activation bypassed, as of `bypassed_field`.
        params: parameters of the network.
        r_free: activities, leaves (B, ...).

    Returns:
        The matrices (B, n, n), units in the order of the pytree's leaves (layers of a dict by
        name); ``W = J + I``.

    Raises:
        AssertionError: if the layers differ in their number of samples.
    """
    leaves, structure = jax.tree.flatten(promote(r_free))
    chex.assert_equal_shape_prefix(leaves, 1)
    params = promote(params)
    sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    _, product = jax.linearize(lambda r: vf_act(params, r), jax.tree.unflatten(structure, leaves))

    def column(unit: Array) -> Array:
        parts = [
            jnp.broadcast_to(part.reshape(leaf.shape[1:]), leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(jnp.split(unit, ends), leaves, strict=True)
        ]
        response = jax.tree.leaves(product(jax.tree.unflatten(structure, parts)))
        return jnp.concatenate([part.reshape(part.shape[0], -1) for part in response], axis=1)

    return jax.vmap(column, out_axes=2)(jnp.eye(sum(sizes)))


def jacobian_symmetry_ratio(jacobian: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """Share of a Jacobian that is symmetric.

    ``s / (s + a)`` with ``s = ||J + J^T||_F / 2`` and ``a = ||J - J^T||_F / 2``; 1 is symmetric,
    0 antisymmetric.

    Args:
        jacobian: J (..., n, n), with the ``-I`` of the leak.

    Returns:
        Ratios in [0, 1] (...), 1 for the zero matrix; float32 for half-precision input.

    Raises:
        AssertionError: if the matrices are not square.

    Reference:
        arXiv 2309.02214, symmetry monitor of Figure 4.
    """
    chex.assert_equal(jacobian.shape[-1], jacobian.shape[-2])
    transposed = jnp.swapaxes(jacobian, -1, -2)
    flat = (*jacobian.shape[:-2], -1)
    symmetric = numerics.safe_norm((jacobian + transposed).reshape(flat))
    antisymmetric = numerics.safe_norm((jacobian - transposed).reshape(flat))
    return numerics.safe_divide(
        numerator=symmetric, denominator=symmetric + antisymmetric, fallback=1.0
    )


def feedback_angle(params: Any, pairs: Sequence[tuple[str, str]]) -> Float[Array, ""]:
    """Angle between all forward weights and the transposes of their feedback weights.

    ``arccos( sum <K_f, K_b^T> / sqrt(sum ||K_f||^2 sum ||K_b||^2) )``, pooled over the pairs and
    evaluated from the lengths of sum and difference, which is exact at 0 and 180 degrees too.

    Args:
        params: parameters with a ``kernel`` (inputs, outputs), or (h, w, low, high) for both
            directions of a convolution, for each connection.
        pairs: names of the forward and the feedback connection of each reciprocal pair.

    Returns:
        Degrees in [0, 180]; NaN if there is no pair, 90 if either side is zero.

    Raises:
        AssertionError: if the two kernels of a pair do not match.

    Reference:
        arXiv 2309.02214, angle monitor; convolutions are compared without transposing.
    """
    if not pairs:
        return jnp.full((), jnp.nan)
    rows: tuple[list[Array], list[Array]] = ([], [])
    for forward_name, feedback_name in pairs:
        forward = params[forward_name]["kernel"]
        feedback = _transposed(params[feedback_name]["kernel"])
        chex.assert_equal_shape([forward, feedback])
        rows[0].append(forward.ravel())
        rows[1].append(feedback.ravel())
    forward, feedback = (numerics.normalize(jnp.concatenate(row)) for row in rows)
    difference, total = map(numerics.safe_norm, (forward - feedback, forward + feedback))
    return jnp.degrees(2 * jnp.arctan2(difference, total))


def rotate_feedback(
    *,
    forward: Float[Array, "..."],
    feedback: Float[Array, "..."],
    angle_deg: float | int | Float[Array, ""],
) -> Float[Array, "..."]:
    """Feedback weights at an angle to the forward weights, from independent ones.

    ``K_b <- sin(a) K_b + cos(a) K_f^T``; 0 degrees ties the two, 90 leaves them independent.

    Args:
        forward: K_f (inputs, outputs), or (h, w, low, high) for a convolution.
        feedback: independent K_b (outputs, inputs), or (h, w, low, high).
        angle_deg: angle in degrees, in [0, 90].

    Returns:
        New feedback weights, shaped like ``feedback``.

    Raises:
        AssertionError: if the kernels do not match.

    Reference:
        arXiv 2309.02214, initialisation of Figure 3; convolutions are not transposed.
    """
    partner = _transposed(forward)
    chex.assert_equal_shape([partner, feedback])
    angle = jnp.radians(angle_deg)
    return jnp.sin(angle) * feedback + jnp.cos(angle) * partner


def _transposed(kernel: Array) -> Array:
    """A dense kernel read backwards; kernels of convolutions have one shape for both ways."""
    return kernel.T if kernel.ndim == 2 else kernel
