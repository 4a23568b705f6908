"""One step of an ordinary differential equation, for states that are pytrees."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jaxtyping import Array, Float

State = TypeVar("State")
Time = float | Float[Array, ""]


def _advance(state: State, derivative: State, dt: Time) -> State:
    """``x + dt k``."""
    return jax.tree.map(lambda x, k: x + dt * k, state, derivative)


def euler_step(derivative: Callable[[State], State], state: State, dt: Time) -> State:
    """Explicit Euler, ``x + dt f(x)``; its error falls in proportion to dt.

    Args:
        derivative: ``f``, of a state.
        state: ``x``, a pytree of arrays.
        dt: step in seconds.

    Returns:
        The state after the step.
    """
    return _advance(state, derivative(state), dt)


def rk4_step(derivative: Callable[[State], State], state: State, dt: Time) -> State:
    """The classical Runge-Kutta method of order four.

    ``x + dt/6 (k1 + 2 k2 + 2 k3 + k4)`` with ``k1 = f(x)``, ``k2 = f(x + dt/2 k1)``,
    ``k3 = f(x + dt/2 k2)`` and ``k4 = f(x + dt k3)``.  What drives the equation is constant during
    the step, so that ``f`` depends on the state only.

    Args:
        derivative: ``f``, of a state.
        state: ``x``, a pytree of arrays.
        dt: step in seconds.

    Returns:
        The state after the step.
    """
    k1 = derivative(state)
    k2 = derivative(_advance(state, k1, dt / 2))
    k3 = derivative(_advance(state, k2, dt / 2))
    k4 = derivative(_advance(state, k3, dt))
    return jax.tree.map(
        lambda x, a, b, c, d: x + dt / 6 * (a + 2 * b + 2 * c + d), state, k1, k2, k3, k4
    )
