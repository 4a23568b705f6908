"""Graph tensors of skeletons: who is whose neighbour, nearer to the body's centre or farther.

A skeleton's adjacency is split into subsets with kernels of their own, so that a joint treats a
neighbour towards the centre unlike one away from it.  The first node index of a tensor is the
node that is read, the second the node that is written.

Reference:
    Yan, Xiong and Lin, "Spatial temporal graph convolutional networks for skeleton-based action
    recognition", AAAI 2018, arXiv 1801.07455.
    Zhang, Lin and Liu, AAAI 2023, arXiv 2211.13466 (edges that are dropped and added).
"""

from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from asym import numerics

Strategy = Literal["spatial", "distance", "uniform"]


def hop_distance(
    edges: Int[Array, "edges 2"], *, num_nodes: int, max_hop: int = 1
) -> Float[Array, "nodes nodes"]:
    """Number of edges between two nodes, infinite beyond ``max_hop``.

    Args:
        edges: pairs of nodes in [0, num_nodes), without direction; loops change nothing (E, 2).
        num_nodes: number V of nodes.
        max_hop: longest distance that is told apart from infinity, >= 0.

    Returns:
        Distances 0, 1, .., max_hop or inf (V, V), symmetric.

    Raises:
        AssertionError: if ``edges`` are not pairs.

    Reference:
        arXiv 1801.07455, authors' code.
    """
    chex.assert_shape(edges, (None, 2))
    adjacent = jnp.eye(num_nodes, dtype=bool)
    adjacent = adjacent.at[edges[:, 0], edges[:, 1]].set(True)
    adjacent = adjacent.at[edges[:, 1], edges[:, 0]].set(True)
    reached = jnp.eye(num_nodes, dtype=bool)
    distance = jnp.where(reached, 0.0, jnp.inf)
    for hop in range(1, max_hop + 1):
        further = jnp.any(reached[:, :, None] & adjacent[None], axis=1)
        distance = jnp.where(further & ~reached, hop, distance)
        reached = further
    return distance


def skeleton_adjacency(
    edges: Int[Array, "edges 2"],
    *,
    num_nodes: int,
    center: int,
    strategy: Strategy = "spatial",
    max_hop: int = 1,
) -> Float[Array, "subsets nodes nodes"]:
    """Column-normalised adjacency of a skeleton, parted into subsets.

    With ``A_n = Adj D^{-1}``, Adj[j, i] = 1 up to ``max_hop`` edges and D the column sums:
    ``uniform``: A_n alone.  ``distance``: the entries of A_n at hop 0, 1, .., max_hop.
    ``spatial``: hop 0, then for each further hop the entries with
    ``dist(j, center) >= dist(i, center)`` and those with ``dist(j, center) < dist(i, center)``.

    Distances to the centre are known up to ``max_hop`` only, and infinity equals infinity: an edge
    both of whose ends are farther away than that has no direction.

    Args:
        edges: pairs of nodes in [0, num_nodes), without direction; loops change nothing (E, 2).
        num_nodes: number V of nodes.
        center: the central node, in [0, num_nodes).
        strategy: how the entries are parted.
        max_hop: longest distance between neighbours, >= 1.

    Returns:
        Subsets that sum to A_n, entries in [0, 1]: (1, V, V) for ``uniform``,
        (1 + max_hop, V, V) for ``distance``, (1 + 2 max_hop, V, V) for ``spatial``.

    Raises:
        AssertionError: if ``edges`` are not pairs.
        ValueError: on another strategy.

    Reference:
        arXiv 1801.07455, section 3.3, as the authors' code computes it: equations 7 and 8 with
        true distances give a different tensor.
    """
    distance = hop_distance(edges, num_nodes=num_nodes, max_hop=max_hop)
    adjacency = jnp.where(jnp.isfinite(distance), 1.0, 0.0)
    normalized = adjacency / jnp.sum(adjacency, axis=0)
    if strategy == "uniform":
        return normalized[None]
    hops = [jnp.where(distance == hop, normalized, 0) for hop in range(max_hop + 1)]
    if strategy == "distance":
        return jnp.stack(hops)
    if strategy == "spatial":
        from_center = distance[:, center]
        towards = from_center[:, None] < from_center[None, :]
        subsets = hops[:1]
        for entries in hops[1:]:
            subsets += [jnp.where(towards, 0, entries), jnp.where(towards, entries, 0)]
        return jnp.stack(subsets)
    raise ValueError(f"strategy must be 'spatial', 'distance' or 'uniform', not {strategy!r}")


def graph_conv(
    x: Float[Array, "nodes *batch channels"],
    *,
    kernel: Float[Array, "subsets channels features"],
    bias: Float[Array, "subsets features"],
    adjacency: Float[Array, "subsets nodes nodes"],
) -> Float[Array, "nodes *batch features"]:
    """Graph convolution: every subset of neighbours has a linear map of its own.

    ``y_w = sum_k sum_v A_k[v, w] (x_v W_k + b_k)``.

    Nodes lead and channels trail, whereby both contractions are plain matrix products over
    everything in between.  Neighbours are gathered before they are mapped: where the channels grow,
    as they do in these networks, that is the smaller of the two products.

    Args:
        x: signal (V, ..., C).
        kernel: linear maps W_k (K, C, C').
        bias: shifts b_k (K, C'), weighted by the edges like the rest.
        adjacency: weights A_k from the node read to the node written (K, V, V).

    Returns:
        The new signal (V, ..., C'), in the common dtype of the arguments.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 1801.07455, equation 10 as in the authors' code: bias before the adjacency, first
        index of A contracted.
    """
    chex.assert_rank([kernel, bias, adjacency], [3, 2, 3])
    chex.assert_shape(adjacency, (kernel.shape[0], x.shape[0], x.shape[0]))
    chex.assert_shape(bias, (kernel.shape[0], kernel.shape[2]))
    chex.assert_axis_dimension(x, -1, kernel.shape[1])
    subsets, channels, features = kernel.shape
    # Three axes at most: with more, XLA copies element by element on a CPU.
    nodes = x.shape[0]
    readers = adjacency.transpose(0, 2, 1).reshape(subsets * nodes, nodes)
    gathered = (readers @ x.reshape(nodes, -1)).reshape(subsets, -1, channels)
    flat = gathered.transpose(1, 0, 2).reshape(-1, subsets * channels)
    shift = jnp.einsum("kvw,kd->wd", adjacency, bias)
    shift = shift.reshape(shift.shape[0], *(1,) * (x.ndim - 2), features)
    mapped = flat @ kernel.reshape(subsets * channels, features)
    return mapped.reshape(*x.shape[:-1], features) + shift


def drop_edges(
    adjacency: Float[Array, "subsets nodes nodes"],
    *,
    keep: Bool[Array, "subsets nodes nodes"],
    rate: float | Float[Array, ""],
    rescale: bool = False,
) -> Float[Array, "subsets nodes nodes"]:
    """Inverted dropout of the entries of a graph tensor.

    ``A' = A keep / (1 - r)``; with ``rescale`` further multiplied by ``sum(A) / sum(A')``.

    Args:
        adjacency: entries >= 0 (K, V, V).
        keep: which entries survive, drawn with probability 1 - r (K, V, V).
        rate: r in [0, 1).
        rescale: restore the total over all subsets.

    Returns:
        The thinned tensor (K, V, V); all 0 if nothing survives.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2211.13466, Drop/Add Edges; ``rescale`` is a variant of the authors' code.
    """
    chex.assert_rank(adjacency, 3)
    chex.assert_equal_shape([adjacency, keep])
    wide = numerics.at_least_float32(adjacency)
    thinned = jnp.where(keep, wide, 0) / (1 - rate)
    if rescale:
        thinned = thinned * numerics.safe_divide(
            numerator=jnp.sum(wide), denominator=jnp.sum(thinned)
        )
    return thinned.astype(adjacency.dtype)


def add_edges(
    adjacency: Float[Array, "subsets nodes nodes"], *, added: Bool[Array, "subsets nodes nodes"]
) -> Float[Array, "subsets nodes nodes"]:
    """Turns some zero entries of a graph tensor into edges and keeps its total.

    ``A' = (A + new) sum(A) / (sum(A) + sum(new))`` with ``new = added where A = 0``.

    Args:
        adjacency: entries >= 0 (K, V, V).
        added: which entries become 1, drawn with a small probability; entries that are not 0
            stay what they are (K, V, V).

    Returns:
        The denser tensor (K, V, V) with the same sum over all subsets.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2211.13466, Drop/Add Edges.
    """
    chex.assert_rank(adjacency, 3)
    chex.assert_equal_shape([adjacency, added])
    wide = numerics.at_least_float32(adjacency)
    new = jnp.where((wide == 0) & added, 1, 0).astype(wide.dtype)
    total = jnp.sum(wide)
    share = numerics.safe_divide(numerator=total, denominator=total + jnp.sum(new))
    return ((wide + new) * share).astype(adjacency.dtype)
