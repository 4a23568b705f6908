"""Twin delayed deep deterministic policy gradient: targets, losses, averaging, optimiser.

Reference:
    Fujimoto, van Hoof and Meger, "Addressing function approximation error in actor-critic
    methods", ICML 2018, arXiv 1802.09477; as run by Eschmann, Albani and Loianno, "Learning to Fly
    in Seconds", RA-L 2024, arXiv 2311.13081.
"""

from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Tree = TypeVar("Tree")


def td3_target(
    reward: Float[Array, "*batch"],
    *,
    terminated: Bool[Array, "*batch"],
    q1: Float[Array, "*batch"],
    q2: Float[Array, "*batch"],
    gamma: float,
) -> Float[Array, "*batch"]:
    """Target of both critics, ``y = r + gamma (1 - terminated) min(Q1', Q2')``, without gradient.

    Args:
        reward: of the step.
        terminated: whether the episode failed; running out of time is not a failure.
        q1: first target critic at the next state and the smoothed target action.
        q2: second target critic there.
        gamma: discount in [0, 1].

    Returns:
        The target.

    Reference:
        arXiv 1802.09477, algorithm 1.
    """
    chex.assert_equal_shape([reward, terminated, q1, q2])
    # Selected, not multiplied: the value at a failed state may be anything.
    following = jnp.where(terminated, 0.0, gamma * jnp.minimum(q1, q2))
    return jax.lax.stop_gradient(reward + following)


def smoothed_action(
    action: Float[Array, "*batch size"], *, key: PRNGKeyArray, std: float, clip: float
) -> Float[Array, "*batch size"]:
    """Action of the target policy under clipped noise, ``clip(a + clip(eps, -c, c), -1, 1)``.

    Args:
        action: of the target actor, in [-1, 1].
        key: of the noise.
        std: standard deviation of the noise before it is clipped.
        clip: ``c``, the largest noise.

    Returns:
        An action in [-1, 1].

    Reference:
        arXiv 1802.09477, algorithm 1.
    """
    noise = std * jax.random.normal(key, action.shape, action.dtype)
    return jnp.clip(action + jnp.clip(noise, -clip, clip), -1.0, 1.0)


def td3_critic_loss(
    q: Float[Array, "*batch"], *, target: Float[Array, "*batch"]
) -> Float[Array, ""]:
    """Mean squared error ``mean (Q - y)^2``, with factor 1.

    Args:
        q: values of a critic.
        target: ``y``; no gradient enters it.

    Returns:
        The loss.

    Reference:
        arXiv 1802.09477, algorithm 1.
    """
    chex.assert_equal_shape([q, target])
    return jnp.mean(jnp.square(q - jax.lax.stop_gradient(target)))


def td3_actor_loss(q: Float[Array, "*batch"]) -> Float[Array, ""]:
    """What the actor descends, ``-mean Q1(s, actor(s))``.

    Args:
        q: values of the first critic at the actor's actions.

    Returns:
        The loss.

    Reference:
        arXiv 1802.09477, algorithm 1.
    """
    return -jnp.mean(q)


def polyak(*, target: Tree, online: Tree, tau: float) -> Tree:
    """Slow copy of a network, ``(1 - tau) target + tau online``.

    Args:
        target: parameters of the slow copy.
        online: parameters that are trained.
        tau: share of the online ones, in [0, 1].

    Returns:
        The target parameters after the step.

    Reference:
        arXiv 1802.09477, algorithm 1.
    """
    return optax.incremental_update(new_tensors=online, old_tensors=target, step_size=tau)


def td3_optimizer(
    learning_rate: float = 1e-3, *, weight_shrinkage: float = 5e-5
) -> optax.GradientTransformation:
    """Adam, after which weight matrices shrink: ``W <- W - adam_step - shrinkage W``.

    The shrinkage is not scaled by the learning rate, and biases (vectors) keep their length.

    Args:
        learning_rate: of Adam (0.9, 0.999, 1e-8); not 0.
        weight_shrinkage: share of a matrix that a step takes away.

    Returns:
        An optax transformation.

    Reference:
        arXiv 2311.13081, authors' code (1e-4 / 2 a step).
    """
    return optax.adamw(
        learning_rate,
        weight_decay=weight_shrinkage / learning_rate,
        mask=lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params),
    )


def geometric_curriculum(
    value: float | Float[Array, ""], *, factor: float, cap: float
) -> Float[Array, ""]:
    """Next weight of a curriculum, ``min(factor value, cap)``.

    Args:
        value: the weight now.
        factor: its growth, at least 1.
        cap: its largest value.

    Returns:
        The next weight.

    Reference:
        arXiv 2311.13081, section III-E and authors' code.
    """
    return jnp.minimum(jnp.asarray(value) * factor, cap)
