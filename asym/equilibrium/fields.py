"""Vector fields with a loss that nudges them, and the relaxation to their fixed points.

States ``u`` and activities ``r = phi(u)`` are pytrees, one array (B, ...) a layer, in which no
sample meets another.  A field sends activities to the input ``H(r)`` of every layer; the network
moves to ``u <- H(phi(u))``, all layers at once, until ``F(u) = H(phi(u)) - u`` vanishes.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int, PyTree

from asym import numerics

Params: TypeAlias = PyTree[Inexact[Array, "..."]]
States: TypeAlias = PyTree[Inexact[Array, "..."]]
Nudge = float | int | complex | Inexact[Array, ""]
Damping = float | int | Float[Array, ""]
Tree = TypeVar("Tree")

# Added to a residual before its logarithm; the authors' constant.
_SMALLEST_RESIDUAL = 1e-8


class VectorField(NamedTuple):
    """The three pure functions that make a network with a fixed point.

    All are holomorphic: complex arguments give the analytic continuation, without conjugates,
    absolute values or real parts.

    Attributes:
        drive: ``(params, activities, x) -> H(r)``, the input of every layer, shaped like the
            activities.
        loss: ``(params, activities, y) -> L``, a scalar, summed over the batch.
        activation: ``phi``, applied to every layer.
    """

    drive: Callable[[Params, States, Array], States]
    loss: Callable[[Params, States, Array], Array]
    activation: Callable[[Array], Array]


class Relaxation(NamedTuple):
    """Where a relaxation stopped, after how many steps, and the largest change in the last one."""

    states: PyTree
    num_steps: Int[Array, ""]
    change: Float[Array, ""]


def activate(vf: VectorField, u: States) -> States:
    """Activities ``r = phi(u)``.

    Args:
        vf: the network.
        u: states, real or complex.

    Returns:
        Activities, shaped like ``u``.
    """
    return jax.tree.map(vf.activation, u)


def loss_gradient(
    vf: VectorField, params: Params, activities: States, y: Inexact[Array, "..."]
) -> States:
    """Force of the loss on the activities, ``g = dL/dr``, not conjugated for complex ones.

    Args:
        vf: the network.
        params: its parameters.
        activities: real or complex activities.
        y: targets (B, ...).

    Returns:
        The gradient, shaped like the activities, 0 where the loss does not look.
    """
    loss, pull_back = jax.vjp(lambda r: vf.loss(params, r, y), activities)
    chex.assert_rank(loss, 0)
    return pull_back(jnp.ones_like(loss))[0]


def next_states(
    vf: VectorField,
    params: Params,
    u: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."] | None = None,
    beta: Nudge = 0.0,
) -> States:
    """One step of all layers from the old activities, ``H_beta(phi(u))``.

    ``H_beta(r) = H(r) + beta dL/dr``.  The nudge climbs the loss, so that ``dphi(u)/dbeta`` is
    the error vector itself.

    Args:
        vf: the network.
        params: its parameters.
        u: states.
        x: input (B, ...).
        y: targets (B, ...); without them there is no nudge.
        beta: strength of the nudge, complex only with complex states.

    Returns:
        The next states, shaped like ``u``.

    Raises:
        AssertionError: if the field does not give one input for each state.

    Reference:
        arXiv 2309.02214, discrete dynamics of the released code: there is no step size.
    """
    activities = activate(vf, u)
    drive = vf.drive(params, activities, x)
    chex.assert_trees_all_equal_shapes(drive, u)
    if y is None:
        return drive
    force = loss_gradient(vf, params, activities, y)
    return jax.tree.map(lambda h, g: h + beta * g, drive, force)


def vector_field(
    vf: VectorField,
    params: Params,
    u: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."] | None = None,
    beta: Nudge = 0.0,
) -> States:
    """What a step changes, ``F(u) = H_beta(phi(u)) - u``; 0 at a fixed point.

    Args:
        vf: the network.
        params: its parameters.
        u: states.
        x: input (B, ...).
        y: targets (B, ...); without them there is no nudge.
        beta: strength of the nudge, complex only with complex states.

    Returns:
        The change, shaped like ``u``.

    Raises:
        AssertionError: if the field does not give one input for each state.

    Reference:
        arXiv 2309.02214, vector field of the released code.
    """
    return jax.tree.map(jnp.subtract, next_states(vf, params, u, x=x, y=y, beta=beta), u)


def relax(
    step_fn: Callable[[Tree], Tree],
    u0: Tree,
    num_steps: int | Int[Array, ""],
    *,
    damping: Damping = 1.0,
    unroll: int = 1,
) -> Tree:
    """States after a fixed number of steps, ``u <- (1 - a) u + a H(u)``.

    Args:
        step_fn: ``u -> H(u)``, of the structure, shapes and dtypes of ``u``.
        u0: states to start from.
        num_steps: steps, >= 0; a Python integer, or there is no reverse-mode gradient.
        damping: ``a`` in (0, 1].  1, the paper's dynamics, can end in an orbit of period 2.
        unroll: steps in one turn of the compiled loop, >= 1; above 1 only with a Python integer
            of steps.  Small networks gain by it, all take longer to compile.

    Returns:
        The last states, shaped like ``u0``.

    Reference:
        arXiv 2309.02214, free and nudged phases (no damping).
    """
    return jax.lax.fori_loop(
        0, num_steps, lambda _, u: _mix(u, step_fn(u), damping), u0, unroll=unroll
    )


def relax_until(
    step_fn: Callable[[Tree], Tree],
    u0: Tree,
    tol: float | int | Float[Array, ""],
    max_steps: int | Int[Array, ""],
    *,
    damping: Damping = 1.0,
) -> Relaxation:
    """Relaxes until no state changes by more than a tolerance; for evaluation.

    Stops at ``max |u_{t+1} - u_t| <= tol``.  The number of steps depends on the values, hence
    forward-mode differentiation only.

    Args:
        step_fn: ``u -> H(u)``, of the structure, shapes and dtypes of ``u``.
        u0: states to start from, real or complex.
        tol: largest change that counts as rest, >= 0.
        max_steps: steps after which to give up, >= 0.
        damping: ``a`` in (0, 1], as in `relax`.

    Returns:
        The last states, the steps taken and the last change (infinite after no step).
    """

    def restless(carry: Relaxation) -> Array:
        return (carry.change > tol) & (carry.num_steps < max_steps)

    def advance(carry: Relaxation) -> Relaxation:
        following = _mix(carry.states, step_fn(carry.states), damping)
        changes = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), following, carry.states)
        change = jnp.max(jnp.stack(jax.tree.leaves(changes))).astype(carry.change.dtype)
        return Relaxation(following, carry.num_steps + 1, change)

    real = jnp.real(jnp.zeros((), jnp.result_type(*jax.tree.leaves(u0), jnp.float32)))
    return jax.lax.while_loop(
        restless, advance, Relaxation(u0, jnp.asarray(0), jnp.full_like(real, jnp.inf))
    )


def log_residual(change: States) -> Float[Array, " batch"]:
    """How far each sample is from its fixed point, on a logarithmic scale.

    ``log10(||F(u)||_2 + 1e-8)``, the length taken over all layers.

    Args:
        change: ``F(u)`` as of `vector_field`, leaves (B, ...), real or complex.

    Returns:
        Logarithms >= -8 (B,), gradient 0 at rest.

    Raises:
        AssertionError: if the layers differ in their number of samples.

    Reference:
        arXiv 2309.02214, convergence monitor of the released code.
    """
    leaves = jax.tree.leaves(change)
    chex.assert_equal_shape_prefix(leaves, 1)
    parts = [part for leaf in leaves for part in _real_parts(leaf)]
    rows = jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)
    return jnp.log10(numerics.safe_norm(rows) + _SMALLEST_RESIDUAL)


def promote(tree: Tree) -> Tree:
    """Half-precision leaves in float32, real and complex ones left alone."""
    return jax.tree.map(lambda z: z.astype(jnp.promote_types(z.dtype, jnp.float32)), tree)


def _mix(old: Tree, new: Tree, damping: Damping) -> Tree:
    if isinstance(damping, float | int) and damping == 1:
        # Zero times an infinite state would be NaN.
        return new
    # The dtype of the old states: a damping of float32 must not widen states of bfloat16.
    return jax.tree.map(lambda u, h: ((1 - damping) * u + damping * h).astype(u.dtype), old, new)


def _real_parts(z: Array) -> tuple[Array, ...]:
    return (jnp.real(z), jnp.imag(z)) if jnp.iscomplexobj(z) else (z,)
