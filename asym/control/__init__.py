"""Learning to control: temporal-difference targets and losses of actors and critics."""

from asym.control.activations import fast_tanh
from asym.control.td3 import (
    geometric_curriculum,
    polyak,
    smoothed_action,
    td3_actor_loss,
    td3_critic_loss,
    td3_optimizer,
    td3_target,
)

__all__ = [
    "fast_tanh",
    "geometric_curriculum",
    "polyak",
    "smoothed_action",
    "td3_actor_loss",
    "td3_critic_loss",
    "td3_optimizer",
    "td3_target",
]
