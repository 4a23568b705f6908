"""What benchmarks of trainings share: a clock on the loop's own program, and a product's rate."""

import time

import jax
import jax.numpy as jnp

from experiments.common import loop

_PRODUCTS = 400


class Dispatches:
    """Times dispatches of a compiled loop, without files and progress around it.

    Args:
      program: The loop's own program; its first dispatch, which compiles, is not counted.
      steps: In a dispatch.
    """

    def __init__(self, program: loop._Program, steps: int) -> None:
        self._program = program
        self._steps = steps
        self._state = program.initial()
        self._done = 0
        self.seconds()

    def seconds(self) -> float:
        """Seconds of one dispatch."""
        start = time.perf_counter()
        last = self._done + self._steps
        self._state, _ = self._program.dispatch(self._state, None, self._done, last)
        jax.block_until_ready(self._state)
        self._done = last
        return time.perf_counter() - start


class Product:
    """Products of activities and weights, batch x width x width, one after the other.

    Args:
      batch: Rows.
      width: Columns.
    """

    def __init__(self, batch: int, width: int) -> None:
        weights = jax.random.normal(jax.random.key(0), (width, width)) / width**0.5
        self._arguments = jnp.ones((batch, width)), weights
        self._operations = 2 * batch * width * width * _PRODUCTS
        self._many = jax.jit(lambda r, w: jax.lax.fori_loop(0, _PRODUCTS, lambda _, r: r @ w, r))
        self.throughput()

    def throughput(self) -> float:
        """Operations a second."""
        start = time.perf_counter()
        jax.block_until_ready(self._many(*self._arguments))
        return self._operations / (time.perf_counter() - start)
