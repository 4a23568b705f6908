"""Learning the graph and its weights: edges too many rather than too few.

An edge kept in error only adds variance, because least squares gives it a weight near 0; an edge
left out in error biases the remaining weights for ever.  So edges are removed from the complete
graph one at a time, and no longer than a cycle is left.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from asym import numerics


class ColumnSamples(NamedTuple):
    """The samples from which each column is learnt.

    ``values[v, n, p, s]`` is node p in the s-th sample in which node n had the bit v, and
    ``mask[v, n, s]`` tells whether there is such a sample; the values are 0 where there is none.
    """

    values: Float[Array, "value column node sample"]
    mask: Bool[Array, "value column sample"]


def select_samples(
    *,
    observations: Float[Array, "node time"],
    actions: Int[Array, "column time"],
    start: Int[Array, "value column"],
    capacity: int,
) -> ColumnSamples:
    """The samples of each column: its bit had the value, and the time is not before its start.

    Args:
        observations: X (N, T).
        actions: bits (N, T); any other number, such as -1, marks a time that is not yet played.
        start: first time whose samples may be used, by value and column (2, N).
        capacity: the FIRST so many samples are kept, >= 1.

    Returns:
        Samples with ``min(capacity, T)`` places for each value and column.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, authors' code (``n_max``).
    """
    chex.assert_equal_shape([observations, actions])
    chex.assert_shape(start, (2, actions.shape[0]))
    nodes, horizon = observations.shape
    size = min(capacity, horizon)
    bits, times = jnp.arange(2)[:, None, None], jnp.arange(horizon)
    usable = (actions[None] == bits) & (times >= start[..., None])
    first = jax.vmap(lambda row: jnp.nonzero(row, size=size, fill_value=horizon)[0])
    index = first(usable.reshape(-1, horizon)).reshape(2, nodes, size)
    values = observations.at[:, index].get(mode="fill", fill_value=0)
    return ColumnSamples(jnp.moveaxis(values, 0, 2), index < horizon)


def ksg_mutual_information(
    x: Float[Array, " sample"],
    y: Float[Array, " sample"],
    *,
    k: int = 5,
    mask: Bool[Array, " sample"] | None = None,
) -> Float[Array, ""]:
    """Mutual information of two variables by nearest neighbours, in nats; it can be negative.

    ``I = psi(k) - 1/k - mean_i[psi(n_x) + psi(n_y)] + psi(S)``: of the k nearest others in the
    maximum norm, the farthest in x tells how many others are as near in x (n_x), likewise for y.

    The k-th smallest distance is found by k passes over the distances, each to the next larger
    one, which the compiler vectorises and a sort does not.  Ties with the k-th neighbour count as
    neighbours.  The estimate is piecewise constant, so its gradient is 0.

    Args:
        x: samples (S,).
        y: samples (S,).
        k: neighbours, 1 <= k.
        mask: which samples count (S,), all by default.

    Returns:
        The estimate; 0 where no more than k samples count. float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree or k is not positive.

    Reference:
        Kraskov, Stögbauer and Grassberger, "Estimating mutual information", 2004, equation 9
        (estimator 2); the authors' code keeps k - 1 of the k neighbours.
    """
    chex.assert_rank([x, y], 1)
    chex.assert_equal_shape([x, y])
    chex.assert_scalar_positive(k)
    x, y = (jax.lax.stop_gradient(numerics.at_least_float32(each)) for each in (x, y))
    valid = jnp.ones(x.shape, bool) if mask is None else mask
    others = valid[:, None] & valid[None, :] & ~jnp.eye(x.shape[0], dtype=bool)
    apart_x, apart_y = jnp.abs(x[:, None] - x), jnp.abs(y[:, None] - y)
    apart = jnp.where(others, jnp.maximum(apart_x, apart_y), jnp.inf)

    def next_distance(_: Array | int, kth: Array) -> Array:
        enough = jnp.sum(apart <= kth[:, None], axis=1) >= k
        following = jnp.min(jnp.where(apart > kth[:, None], apart, jnp.inf), axis=1)
        return jnp.where(enough, kth, following)

    kth = jax.lax.fori_loop(0, k, next_distance, jnp.full_like(x, -jnp.inf))
    near = others & (apart <= kth[:, None])

    def count(distance: Array) -> Array:
        reach = jnp.max(jnp.where(near, distance, -jnp.inf), axis=1, keepdims=True)
        return jnp.sum(others & (distance <= reach), axis=1).astype(x.dtype)

    total = jnp.sum(valid).astype(x.dtype)
    psi = jax.scipy.special.digamma
    # Rows without neighbours are masked; psi has a pole at 0.
    terms = psi(jnp.maximum(count(apart_x), 1)) + psi(jnp.maximum(count(apart_y), 1))
    mean = jnp.sum(jnp.where(valid, terms, 0)) / jnp.maximum(total, 1)
    estimate = psi(x.dtype.type(k)) - 1 / k - mean + psi(jnp.maximum(total, 1))
    return jnp.where(total > k, estimate, 0)


def ols_masked(
    covariates: Float[Array, "node sample"],
    response: Float[Array, " sample"],
    *,
    parent_mask: Bool[Array, " node"],
    sample_mask: Bool[Array, " sample"],
) -> Float[Array, " node"]:
    """Ordinary least squares without intercept on some of the nodes and some of the samples.

    ``w = argmin sum_s (y_s - sum_p w_p X_ps)^2``; of several minima (fewer samples than parents)
    the shortest, by the pseudo-inverse of the normal equations.  Give float64 where covariates may
    be nearly collinear: the normal equations square the condition number.

    Args:
        covariates: X (N, S).
        response: y (S,).
        parent_mask: which nodes are covariates (N,).
        sample_mask: which samples count (S,).

    Returns:
        Weights (N,), 0 for nodes that are no covariates; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, weight estimation (without ridge, as in the authors' code).
    """
    chex.assert_shape(covariates, (parent_mask.shape[0], sample_mask.shape[0]))
    chex.assert_equal_shape([response, sample_mask])
    kept = _kept(covariates, parent_mask, sample_mask)
    wanted = jnp.where(sample_mask, numerics.at_least_float32(response), 0)
    found = jnp.linalg.pinv(kept @ kept.T, hermitian=True) @ (kept @ wanted)
    # Rounding within the decomposition must not look like an edge.
    return jnp.where(parent_mask, found, 0)


def edge_score(
    *,
    mutual_information: Float[Array, "*edges"],
    weight_hat: Float[Array, "*edges"],
    log_weight: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*edges"]:
    """How readily an edge is removed: the largest score goes first.

    ``s = I(residual; covariate) - w log |b|``.  A node that is no ancestor leaves its error in the
    residual, but a small weight hides that dependence, which the logarithm makes up for.

    Args:
        mutual_information: I of the column's residual and the covariate, in nats.
        weight_hat: fitted weight b of the edge; 0 scores +inf, unless w = 0.
        log_weight: w >= 0; 0 is the symmetric rule, mutual information alone.

    Returns:
        Scores of the shape of the arguments; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, sub-graph learning and Proposition 1 of its proofs.
    """
    chex.assert_equal_shape([mutual_information, weight_hat])
    dependence = numerics.at_least_float32(mutual_information)
    size = jnp.abs(numerics.at_least_float32(weight_hat))
    absent = size == 0
    # Double where: the slope of the logarithm at 0 must not reach the gradient.
    scored = dependence - log_weight * jnp.log(jnp.where(absent, 1, size))
    return jnp.where(absent & (jnp.asarray(log_weight) > 0), jnp.inf, scored)


def is_dag(adjacency: Bool[Array, "node column"]) -> Bool[Array, ""]:
    """Whether a directed graph has no cycle.

    ``A^m = 0`` for some ``m >= N`` (nilpotency), by squaring with booleans.

    Args:
        adjacency: ``adjacency[p, n]`` tells whether there is an edge from p to n (N, N).

    Returns:
        A boolean.

    Raises:
        AssertionError: if the matrix is not square.
    """
    chex.assert_shape(adjacency, (adjacency.shape[0],) * 2)
    power = adjacency
    for _ in range(max(adjacency.shape[0] - 1, 0).bit_length()):
        # Float products count walks of one length, which no overflow can turn into none.
        walks = power.astype(jnp.float32)
        power = walks @ walks > 0
    return ~jnp.any(power)


def prune_to_dag(
    values: Float[Array, "column node sample"],
    mask: Bool[Array, "column sample"],
    *,
    noise_mean: Float[Array, " node"],
    k: int = 5,
    log_weight: float | Float[Array, ""] = 1.0,
) -> Bool[Array, "node column"]:
    """Learns a graph by removing edges from the complete one until the first acyclic graph.

    Each column is regressed on its candidate parents; of all edges the one with the largest
    `edge_score` goes; its column is regressed anew.  Stopping at the first acyclic graph leaves
    edges too many rather than too few.

    Args:
        values: samples of each column (N, N, S), such as one value of `ColumnSamples`.
        mask: which of them there are (N, S).
        noise_mean: nu (N,).
        k: neighbours of the mutual information.
        log_weight: w of `edge_score`.

    Returns:
        ``adjacency[p, n]`` (N, N): whether p counts as a parent of n.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, sub-graph learning; the authors' code.
    """
    nodes = noise_mean.shape[0]
    chex.assert_shape(values, (nodes, nodes, None))
    chex.assert_shape(mask, (nodes, values.shape[2]))
    values = numerics.at_least_float32(values)

    def scores(column: Array, parents: Array) -> Array:
        covariates, kept = values[column], mask[column]
        response = covariates[column] - noise_mean[column]
        weights = ols_masked(covariates, response, parent_mask=parents, sample_mask=kept)
        residual = response - weights @ covariates
        dependence = jax.vmap(
            lambda covariate: ksg_mutual_information(residual, covariate, k=k, mask=kept)
        )(covariates)
        score = edge_score(mutual_information=dependence, weight_hat=weights, log_weight=log_weight)
        return jnp.where(parents, score, -jnp.inf)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        adjacency, _, scored = state
        return (scored < nodes) | ~is_dag(adjacency)

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # The first rounds score the columns, each later one removes an edge and scores its column
        # anew: one body, because scoring is most of the program.
        adjacency, table, scored = state
        parent, worst = jnp.unravel_index(jnp.argmax(table), table.shape)
        scoring = scored < nodes
        column = jnp.where(scoring, scored, worst)
        keep = scoring | (jnp.arange(nodes) != parent)
        adjacency = adjacency.at[:, column].set(adjacency[:, column] & keep)
        table = table.at[:, column].set(scores(column, adjacency[:, column]))
        return adjacency, table, scored + 1

    complete = ~jnp.eye(nodes, dtype=bool)
    unscored = jnp.zeros((nodes, nodes), values.dtype)
    return jax.lax.while_loop(unfinished, advance, (complete, unscored, jnp.int32(0)))[0]


def estimate_weights(
    values: Float[Array, "column node sample"],
    mask: Bool[Array, "column sample"],
    *,
    adjacency: Bool[Array, "node column"],
    noise_mean: Float[Array, " node"],
) -> Float[Array, "node column"]:
    """Weights of a known graph, column by column, by least squares.

    ``[B]_n = argmin ||X_n - nu_n - X^T [B]_n||`` over weights that are 0 where there is no edge.

    Args:
        values: samples of each column (N, N, S).
        mask: which of them there are (N, S).
        adjacency: the graph (N, N).
        noise_mean: nu (N,).

    Returns:
        Weights (N, N), 0 in columns without parents; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, weight estimation.
    """
    nodes = noise_mean.shape[0]
    chex.assert_shape(values, (nodes, nodes, None))
    chex.assert_shape(adjacency, (nodes, nodes))

    def one(column: Array, covariates: Array, kept: Array, parents: Array) -> Array:
        response = covariates[column] - noise_mean[column]
        return ols_masked(covariates, response, parent_mask=parents, sample_mask=kept)

    return jax.vmap(one, (0, 0, 0, 1), 1)(jnp.arange(nodes), values, mask, adjacency)


def _kept(covariates: Array, parent_mask: Array, sample_mask: Array) -> Array:
    """The covariates with 0 where they are not used."""
    used = parent_mask[:, None] & sample_mask
    return jnp.where(used, numerics.at_least_float32(covariates), 0)
