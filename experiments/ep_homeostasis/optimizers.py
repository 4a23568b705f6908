"""Step rules by name, with factors by layer for the convolutional network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

NAMES = ("adam", "adamw", "sgd", "sgd_cos", "adamw_cos")

# From the input up; a feedback connection shares the factor of its forward partner.
_LEVELS = ("in-conv1", "conv1-conv2", "conv2-conv3", "conv3-out", "readout")
_FACTORS = {
    "sgd_cos": (25.0, 15.0, 10.0, 8.0, 5.0),
    "adamw": (1.0, 0.8, 0.5, 0.2, 0.1),
    "adamw_cos": (3.0, 2.0, 1.5, 1.0, 1.0),
}
# The readout's weight decay over that of the rest.
_READOUT_DECAY = {"sgd_cos": 2.0, "adamw_cos": 10.0}


def make(config: Any, num_steps: int) -> optax.GradientTransformation:
    """The step rule of a run.

    Args:
      config: The experiment's settings.
      num_steps: Length of a cosine decay.

    Returns:
      An optimizer of the parameters by connection.
    """
    name = config.optimizer
    layered = config.arch == "cnn"
    rate: optax.ScalarOrSchedule = config.learning_rate
    if name.endswith("_cos"):
        rate = optax.cosine_decay_schedule(config.learning_rate, num_steps)
    decay = _by_connection(
        lambda c: (
            config.weight_decay
            * (_READOUT_DECAY.get(name, 1.0) if layered and c == "readout" else 1.0)
        )
    )
    if name.startswith("sgd"):
        # Coupled: the decay enters the momentum.
        parts = [_add_decay(decay), optax.trace(config.momentum)]
    elif name == "adam":
        parts = [optax.scale_by_adam()]
    else:
        parts = [optax.scale_by_adam(), _add_decay(decay)]
    factor = _by_connection(lambda c: layer_factor(name, c) if layered else 1.0)
    scale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factor(updates)))
    return optax.chain(*parts, scale, optax.scale_by_learning_rate(rate))


def layer_factor(name: str, connection: str) -> float:
    """Factor of the step size for one connection of the convolutional network.

    Args:
      name: The step rule.
      connection: Name of the connection, or "readout".

    Returns:
      The factor; 1 where the rule has none.
    """
    if name not in _FACTORS:
        return 1.0
    backwards = "-".join(reversed(connection.split("-")))
    level = connection if connection in _LEVELS else backwards
    return _FACTORS[name][_LEVELS.index(level)]


def _by_connection(value: Callable[[str], float]) -> Callable[[Any], Any]:
    """A tree shaped like the parameters, whose leaves depend on the connection's name."""

    def tree(params: Any) -> Any:
        return {c: jax.tree.map(lambda _, c=c: value(c), leaf) for c, leaf in params.items()}

    return tree


def _add_decay(decay: Callable[[Any], Any]) -> optax.GradientTransformation:
    def add(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda g, w, d: g + d * w, updates, params, decay(params))

    return optax.stateless(add)
