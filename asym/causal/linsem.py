"""Linear structural equation models whose columns an action chooses.

``B[p, n]`` is the weight of the edge from p to n; the last node is the reward.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asym import numerics


def post_intervention(
    *,
    observational: Float[Array, "node column"],
    interventional: Float[Array, "node column"],
    action: Int[Array, " column"],
) -> Float[Array, "node column"]:
    """The weights in force under an action.

    ``[B_a]_n = [B]_n if a_n = 0 else [B']_n``, column by column.

    Args:
        observational: weights B without intervention (N, N).
        interventional: weights B' under intervention (N, N).
        action: bits (N,), 0 or 1.

    Returns:
        B_a (N, N).

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, signal model.
    """
    chex.assert_equal_shape([observational, interventional])
    chex.assert_shape(observational, (action.shape[0], action.shape[0]))
    return jnp.where(action[None, :] != 0, interventional, observational)


def all_actions(nodes: int) -> Int[Array, "arm node"]:
    """Every action: row i holds the bits of i, the most significant one (node 0) first.

    Args:
        nodes: N >= 1.

    Returns:
        Bits (2^N, N), 0 or 1.

    Raises:
        AssertionError: if there is no node.

    Reference:
        The authors' code; the card of the paper, method 4.
    """
    chex.assert_scalar_positive(nodes)
    index = jnp.arange(2**nodes, dtype=jnp.int32)
    return (index[:, None] >> jnp.arange(nodes, dtype=jnp.int32)[::-1]) & 1


def flow_matrix(weights: Float[Array, "node column"]) -> Float[Array, "node column"]:
    """Total weight of all paths from each node to each other.

    ``C = (I - B)^{-1} = I + B + B^2 + ...``, by elimination.

    Args:
        weights: B (N, N), of an acyclic graph (or with I - B regular).

    Returns:
        C (N, N); float32 for half-precision input.

    Raises:
        AssertionError: if the matrix is not square.

    Reference:
        arXiv 2408.11240, signal model.
    """
    identity, weights = _identity_and(weights)
    return jnp.linalg.solve(identity - weights, identity)


def mean_response(
    weights: Float[Array, "node column"], noise_mean: Float[Array, " node"]
) -> Float[Array, " node"]:
    """Expected value of every node.

    ``mu = (I - B)^{-T} nu``.

    Args:
        weights: B in force (N, N).
        noise_mean: nu (N,).

    Returns:
        mu (N,); float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, signal model.
    """
    chex.assert_shape(weights, (noise_mean.shape[0], noise_mean.shape[0]))
    identity, weights = _identity_and(weights)
    return jnp.linalg.solve((identity - weights).T, numerics.at_least_float32(noise_mean))


def expected_reward(
    *,
    observational: Float[Array, "node column"],
    interventional: Float[Array, "node column"],
    noise_mean: Float[Array, " node"],
    actions: Int[Array, "arm node"],
) -> Float[Array, " arm"]:
    """Expected value of the last node under each action.

    ``[mu_a]_N`` with ``mu_a = (I - B_a)^{-T} nu``.

    Args:
        observational: B (N, N).
        interventional: B' (N, N).
        noise_mean: nu (N,).
        actions: bits (A, N).

    Returns:
        Expected rewards (A,).

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, signal model.
    """

    def one(action: Array) -> Array:
        weights = post_intervention(
            observational=observational, interventional=interventional, action=action
        )
        return mean_response(weights, noise_mean)[-1]

    return jax.vmap(one)(actions)


def path_sum_reward(
    *,
    observational: Float[Array, "node column"],
    interventional: Float[Array, "node column"],
    noise_mean: Float[Array, " node"],
    actions: Int[Array, "arm node"],
) -> Float[Array, " arm"]:
    """Expected value of the last node under each action, as a sum over paths.

    ``[sum_{l < N} (B_a^T)^l nu]_N``.  Where no action has a cycle this is `expected_reward`, and
    cheaper for many actions, which share the products with both matrices.

    Args:
        observational: B (N, N).
        interventional: B' (N, N).
        noise_mean: nu (N,).
        actions: bits (A, N); longer paths than N - 1 edges, which need a cycle, are left out.

    Returns:
        Expected rewards (A,).

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, signal model: ``(I - B)^{-1} = sum_l B^l`` without cycles.
    """
    chex.assert_equal_shape([observational, interventional])
    chex.assert_shape(observational, (noise_mean.shape[0], noise_mean.shape[0]))
    chex.assert_shape(actions, (None, noise_mean.shape[0]))
    without, under, noise = map(
        numerics.at_least_float32, (observational, interventional, noise_mean)
    )
    mean = jnp.broadcast_to(noise, actions.shape)
    for _ in range(noise.shape[0] - 1):
        mean = noise + jnp.where(actions != 0, mean @ under, mean @ without)
    return mean[:, -1]


def sample(
    weights: Float[Array, "node column"], noise: Float[Array, "node *samples"]
) -> Float[Array, "node *samples"]:
    """Observations of a linear structural equation model.

    ``X = (I - B_a)^{-T} eps``, which solves ``X = B_a^T X + eps``.

    Args:
        weights: B_a (N, N).
        noise: eps (N,) or (N, n).

    Returns:
        X, of the shape of ``noise``; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, signal model.
    """
    chex.assert_shape(weights, (noise.shape[0], noise.shape[0]))
    identity, weights = _identity_and(weights)
    return jnp.linalg.solve((identity - weights).T, numerics.at_least_float32(noise))


def _identity_and(weights: Array) -> tuple[Array, Array]:
    chex.assert_shape(weights, (weights.shape[0],) * 2)
    weights = numerics.at_least_float32(weights)
    return jnp.eye(weights.shape[0], dtype=weights.dtype), weights
