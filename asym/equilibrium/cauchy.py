"""Derivatives of holomorphic functions from finitely many points at a finite distance."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int, PyTree

from asym import numerics

Radius = float | int | Float[Array, ""]


def circle_points(
    beta: Radius, n: int | Int[Array, ""], t: Int[Array, "..."]
) -> Complex[Array, "..."]:
    """Points of a circle around 0, ``beta_t = beta exp(2 pi i t / N)``.

    Args:
        beta: radius, > 0.
        n: number of points N of the whole circle, >= 1.
        t: indices of the wanted points, any shape; they repeat with period N.

    Returns:
        The points, in the shape of ``t``.

    Reference:
        arXiv 2209.00530, oscillation of the nudge.
    """
    return beta * jnp.exp(2j * jnp.pi * (t % n) / n)


def cauchy_derivative(
    f: Callable[[Array], PyTree], beta: Radius, n: int, *, f0: PyTree | None = None
) -> PyTree:
    """Derivative at 0 of a function that is real on the real axis, from its values on a circle.

    - ``n = 0``: the exact derivative, by forward mode;
    - ``n = 1``: the one-sided difference ``(f(beta) - f(0)) / beta``, with error O(beta);
    - ``n >= 2``: Cauchy's integral over N points, ``(1/N) sum_t f(beta_t) / beta_t`` with
      ``beta_t = beta exp(2 pi i t / N)``; ``n = 2`` is the central difference.

    If f is holomorphic in a larger disc, Taylor coefficient number N + 1 is the first that
    aliases: the error is ``|c_{N+1}| beta^N``, exponentially small in N.  If f has a pole inside
    the circle, more points do not help.  Points t and N - t are conjugates, so that only the
    upper half is evaluated: real points in real arithmetic and complex ones in complex
    arithmetic, each batched by vmap.

    Args:
        f: from a real or complex scalar to a pytree of the same kind of numbers.
        beta: radius of the circle, > 0; unused for ``n = 0``.
        n: number of points N >= 0.
        f0: the value that stands for ``f(0)`` if ``n = 1``, evaluated if None; unused otherwise.

    Returns:
        The derivative, a real pytree in the structure of ``f``.

    Raises:
        AssertionError: if ``n`` is negative.

    Reference:
        arXiv 2209.00530, finite-size oscillations; arXiv 2309.02214, ``N`` of its Table 1.
    """
    chex.assert_scalar_non_negative(n)
    radius = numerics.at_least_float32(jnp.asarray(beta))
    if n == 0:
        return jax.jvp(f, (jnp.zeros_like(radius),), (jnp.ones_like(radius),))[1]
    if n == 1:
        start = f(jnp.zeros_like(radius)) if f0 is None else f0
        return jax.tree.map(lambda end, begin: (end - begin) / radius, f(radius), start)
    total = _sum_of_quotients(f, radius * jnp.array([1, -1] if n % 2 == 0 else [1]))
    if n > 2:
        upper = _sum_of_quotients(f, circle_points(radius, n, jnp.arange(1, (n + 1) // 2)))
        total = jax.tree.map(lambda real, half: real + 2 * jnp.real(half), total, upper)
    return jax.tree.map(lambda quotients: quotients / n, total)


def _sum_of_quotients(f: Callable[[Array], PyTree], points: Array) -> PyTree:
    """Sum over the points of ``f(point) / point``."""

    def total(values: Array) -> Array:
        return jnp.tensordot(1 / points, values, axes=1)

    return jax.tree.map(total, jax.vmap(f)(points))
