"""Actor and critics: two hidden layers and the fast tangent.

Every dense layer starts from U(-1, 1)/sqrt(fan in), weights and biases alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from asym import control
from experiments.learning_to_fly.flight import ACTIONS

HIDDEN = 64


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    bound = inputs**-0.5

    def uniform(key: PRNGKeyArray, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(inputs, outputs, kernel_init=uniform, bias_init=uniform, rngs=rngs)


class MLP(nnx.Module):
    """Dense layers with the fast tangent between them.

    Attributes:
      first: inputs to 64.
      second: 64 to 64.
      last: 64 to outputs.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.first = _dense(inputs, HIDDEN, rngs)
        self.second = _dense(HIDDEN, HIDDEN, rngs)
        self.last = _dense(HIDDEN, outputs, rngs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The last layer's values, without an activation."""
        return self.last(control.fast_tanh(self.second(control.fast_tanh(self.first(x)))))


class Actor:
    """A policy as functions of its parameters.

    Attributes:
      size: How many numbers it sees.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._graph = nnx.graphdef(nnx.eval_shape(lambda: MLP(size, ACTIONS, rngs=nnx.Rngs(0))))

    def init(self, key: PRNGKeyArray) -> Any:
        """Initial parameters.

        Args:
          key: Random key.

        Returns:
          A pytree of arrays.
        """
        return nnx.to_pure_dict(nnx.state(MLP(self.size, ACTIONS, rngs=nnx.Rngs(key))))

    def act(self, params: Any, seen: Float[Array, "*batch size"]) -> Float[Array, "*batch 4"]:
        """Actions in [-1, 1].

        Args:
          params: Parameters.
          seen: Observations.

        Returns:
          One number a rotor.
        """
        return control.fast_tanh(nnx.merge(self._graph, nnx.State(params))(seen))


class Critic:
    """A value as functions of its parameters.

    Attributes:
      size: How many numbers it sees, actions included if it judges them.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._graph = nnx.graphdef(nnx.eval_shape(lambda: MLP(size, 1, rngs=nnx.Rngs(0))))

    def init(self, key: PRNGKeyArray) -> Any:
        """Initial parameters.

        Args:
          key: Random key.

        Returns:
          A pytree of arrays.
        """
        return nnx.to_pure_dict(nnx.state(MLP(self.size, 1, rngs=nnx.Rngs(key))))

    def value(self, params: Any, seen: Float[Array, "*batch size"]) -> Float[Array, "*batch"]:
        """Values.

        Args:
          params: Parameters.
          seen: Observations.

        Returns:
          One number each.
        """
        return nnx.merge(self._graph, nnx.State(params))(seen)[..., 0]
