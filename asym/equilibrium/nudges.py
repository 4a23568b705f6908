"""Nudged phases, and the error vectors that a network measures by itself through them.

The estimates need nothing but the network's own dynamics: activities under a nudge of the output,
compared with activities without it, or averaged over a circle of complex nudges.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from asym import numerics
from asym.equilibrium.cauchy import Radius, cauchy_derivative, circle_points
from asym.equilibrium.fields import (
    Damping,
    Nudge,
    Params,
    States,
    VectorField,
    activate,
    log_residual,
    loss_gradient,
    next_states,
    promote,
    relax,
    vector_field,
)


class OnlineEstimate(NamedTuple):
    """What a network measures while its nudge keeps oscillating.

    Attributes:
        u_mean: mean state, which stands for the free one.
        delta: error vector.
    """

    u_mean: States
    delta: States


class CircleDiagnosis(NamedTuple):
    """How well a circle of nudges behaves.

    Attributes:
        log_residual: logarithms >= -8 (N // 2 + 1, B), distance from rest of the phases in the
            upper half of the circle; about -8 in float64, -6 in float32, for settled ones.
        defect: numbers >= 0 (B,), relative error of the mean value; well below 1, the relative
            bias of the error vector is of a similar order, near 1 the error vector is void.
    """

    log_residual: Float[Array, "phases batch"]
    defect: Float[Array, " batch"]


def nudged_phase(
    vf: VectorField,
    params: Params,
    u_free: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
    num_steps: int | Int[Array, ""],
    beta: Nudge,
    damping: Damping = 1.0,
    unroll: int = 1,
) -> States:
    """States that a constant nudge reaches from the free ones.

    Args:
        vf: the network.
        params: its parameters.
        u_free: free states; half-precision ones are promoted to float32.
        x: input (B, ...).
        y: targets (B, ...).
        num_steps: T2, steps of the phase.
        beta: strength of the nudge; if complex, so are the states.
        damping: as in `relax`.
        unroll: as in `relax`.

    Returns:
        States after the phase, shaped like ``u_free``.

    Reference:
        arXiv 2309.02214, nudged phase.
    """
    force = jnp.asarray(beta)
    params, u_free = promote(params), promote(u_free)
    if jnp.iscomplexobj(force):
        u_free = jax.tree.map(lambda u: u.astype(jnp.promote_types(u.dtype, "complex64")), u_free)
    force = force.astype(jnp.result_type(*jax.tree.leaves(u_free)))

    def step(u: States) -> States:
        return next_states(vf, params, u, x=x, y=y, beta=force)

    return relax(step, u_free, num_steps, damping=damping, unroll=unroll)


def ep_error_vector(
    vf: VectorField,
    params: Params,
    u_free: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
    num_steps: int | Int[Array, ""],
    beta: Radius = 0.0,
    n: int = 0,
    damping: Damping = 1.0,
    unroll: int = 1,
) -> States:
    """Error vector of (holomorphic) equilibrium propagation, ``d phi(u_beta) / d beta`` at 0.

    `cauchy_derivative` of the activities after ``num_steps`` nudged steps, all N phases from the
    same free states: exact for ``n = 0``, classic for ``n = 1``, holomorphic for ``n >= 2``.
    Converges to ``(D^-1 - W)^-1 g``.

    For ``n = 0`` states and derivative relax together, ``v <- H'(u) v + dL/dr``: a nudge of 0
    leaves the loss without second derivatives, which the compiler would evaluate in vain.

    Args:
        vf: the network.
        params: its parameters.
        u_free: free states u* (B, ...); half-precision ones are promoted to float32.
        x: input (B, ...).
        y: targets (B, ...).
        num_steps: T2, steps of each nudged phase.
        beta: radius of the nudges, > 0; unused for ``n = 0``.
        n: number of phases N, >= 0.
        damping: as in `relax`.
        unroll: as in `relax`.

    Returns:
        The error vector delta, shaped like ``u_free``, in at least float32.

    Reference:
        arXiv 2309.02214, ``hep_vf`` of the released code: derivatives of activities, not states.
    """
    pace: dict[str, Any] = {"num_steps": num_steps, "damping": damping, "unroll": unroll}
    if n == 0:
        return _exact_error_vector(vf, params, u_free, x=x, y=y, **pace)

    def activities(strength: Array) -> States:
        return activate(vf, nudged_phase(vf, params, u_free, x=x, y=y, beta=strength, **pace))

    return cauchy_derivative(activities, beta, n, f0=activate(vf, promote(u_free)))


def diagnose_circle(
    vf: VectorField,
    params: Params,
    u_free: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
    num_steps: int | Int[Array, ""],
    beta: Radius,
    n: int,
    damping: Damping = 1.0,
) -> CircleDiagnosis:
    """Whether a circle of nudges can be trusted, from the activities on it alone.

    Two things go wrong.  A phase may not have settled, which the residual ``log10(||F_{beta_t}
    (u_{beta_t})|| + 1e-8)`` tells.  Or all of them settle, but the circle surrounds a singularity,
    and more phases do not help: then the mean value over the circle is not the value at its
    centre.  ``defect = ||mean_t phi(u_{beta_t}) - phi(u*)|| / (beta ||delta||)`` aliases one
    coefficient earlier than delta, as ``|c_N| beta^{N-1} / |c_1|``, and so warns in time.

    Args:
        vf: the network.
        params: its parameters.
        u_free: free states u* (B, ...).
        x: input (B, ...).
        y: targets (B, ...).
        num_steps: T2, steps of each nudged phase.
        beta: radius of the nudges, > 0.
        n: number of phases N, >= 2.
        damping: as in `relax`.

    Returns:
        Residual and defect by sample.

    Raises:
        AssertionError: if ``n`` is below 2.

    Reference:
        arXiv 2309.02214, convergence monitor of the code, here of nudged phases.  The defect is
        an addition: in the recorded sigmoid network at beta 0.5 all residuals vanish while the
        gradient is wrong by a third.
    """
    chex.assert_scalar_positive(n - 1)
    params, u_free = promote(params), promote(u_free)
    points = circle_points(beta, n, jnp.arange(n // 2 + 1))

    def phase(strength: Array) -> tuple[Array, Array]:
        reached = nudged_phase(
            vf, params, u_free, x=x, y=y, num_steps=num_steps, beta=strength, damping=damping
        )
        change = vector_field(vf, params, reached, x=x, y=y, beta=strength)
        return log_residual(change), _rows(activate(vf, reached))

    residual, activities = jax.vmap(phase)(points)
    # The points left out are the conjugates of those that are not real.
    weights = jnp.array([1 if 2 * t in (0, n) else 2 for t in range(n // 2 + 1)]) / n
    mean = jnp.real(jnp.tensordot(weights, activities, axes=1))
    delta = jnp.real(jnp.tensordot(weights / points, activities, axes=1))
    defect = numerics.safe_divide(
        numerator=numerics.safe_norm(mean - _rows(activate(vf, u_free))),
        denominator=beta * numerics.safe_norm(delta),
    )
    return CircleDiagnosis(residual, defect)


def online_error_vector(
    vf: VectorField,
    params: Params,
    u0: States,
    *,
    x: Inexact[Array, "..."],
    y: Inexact[Array, "..."],
    num_blocks: int,
    steps_per_block: int | Int[Array, ""],
    beta: Radius,
    n: int | Int[Array, ""],
    damping: Damping = 1.0,
) -> OnlineEstimate:
    """Error vector of a network that is never let free: its nudge oscillates without a pause.

    Block t = 0 .. Q - 1 relaxes on, from where the last one ended, under ``beta_t = beta
    exp(2 pi i t / N)``; then ``u_mean = Re(mean_t u_t)`` and ``delta = Re(mean_t phi(u_t) /
    beta_t)``.  The transient at the start enters both means.

    Args:
        vf: the network.
        params: its parameters.
        u0: states to start from (B, ...), zero in the paper.
        x: input (B, ...).
        y: targets (B, ...).
        num_blocks: Q, a multiple of N: only whole periods cancel the free states.
        steps_per_block: steps at each nudge.
        beta: radius of the nudges, > 0.
        n: blocks N of a period, >= 2.
        damping: as in `relax`.

    Returns:
        Mean states and error vector, shaped like ``u0``, in at least float32.

    Reference:
        arXiv 2309.02214, Table 1, ``online_hvf`` of the released code.
    """
    u0 = promote(u0)
    start = jax.tree.map(lambda u: u.astype(jnp.promote_types(u.dtype, "complex64")), u0)
    strengths = circle_points(beta, n, jnp.arange(num_blocks))

    def block(u: States, strength: Array) -> tuple[States, tuple[States, States]]:
        u = nudged_phase(
            vf, params, u, x=x, y=y, num_steps=steps_per_block, beta=strength, damping=damping
        )
        return u, (u, jax.tree.map(lambda r: r / strength.astype(r.dtype), activate(vf, u)))

    _, histories = jax.lax.scan(block, start, strengths)
    means = jax.tree.map(lambda history: jnp.real(jnp.mean(history, axis=0)), histories)
    return OnlineEstimate(*means)


def _exact_error_vector(
    vf: VectorField, params: Params, u_free: States, *, x: Array, y: Array, **pace: Any
) -> States:
    """Derivative at 0 of the activities after the nudged phase, by forward mode."""
    params, u_free = promote(params), promote(u_free)

    def step(carry: tuple[States, States]) -> tuple[States, States]:
        u, tangent = carry
        following, carried = jax.jvp(lambda u: next_states(vf, params, u, x=x), (u,), (tangent,))
        force = loss_gradient(vf, params, activate(vf, u), y)
        return following, jax.tree.map(jnp.add, carried, force)

    start = u_free, jax.tree.map(jnp.zeros_like, u_free)
    u, tangent = relax(step, start, **pace)
    return jax.jvp(lambda u: activate(vf, u), (u,), (tangent,))[1]


def _rows(states: States) -> Array:
    """All layers of a sample in one row."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(states)]
    return jnp.concatenate(leaves, axis=1)
