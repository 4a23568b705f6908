"""Contrast against a queue of negatives, and consistency that flows from strong to weak views.

Two asymmetries meet here.  The query encoder is trained and the key encoder only follows it
(momentum), so gradients stop at keys and queue.  A strongly augmented view learns what a weakly
augmented one sees in the queue and never the reverse: the weak view's distribution over
{positive key, queue} is a target without gradient.

Logits have the positive key at index 0 and the columns of the queue behind it.

Reference:
    Zhang, Lin and Liu, "Hierarchical consistent contrastive learning for skeleton-based action
    recognition with growing augmentations", AAAI 2023, arXiv 2211.13466.
    He et al., "Momentum contrast for unsupervised visual representation learning", CVPR 2020,
    arXiv 1911.05722.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree

from asym import numerics

Direction = Literal["strong_to_weak", "weak_to_strong", "symmetric"]
Anchor = Literal["adjacent", "weakest"]


class HierarchicalLoss(NamedTuple):
    """The parts of `hiclr_loss`.

    Attributes:
        total: ``info_nce`` plus the mean of ``consistency`` ().
        info_nce: contrast of the weakest view with its key ().
        consistency: loss of each stronger view, weakest first (views - 1,).
        logits: logits of each view, weakest first (views, N, 1 + K).
        positive_mask: which candidates count as positives of the weakest view (N, 1 + K).
    """

    total: Float[Array, ""]
    info_nce: Float[Array, ""]
    consistency: Float[Array, " pairs"]
    logits: Float[Array, "views batch candidates"]
    positive_mask: Bool[Array, "batch candidates"]


def info_nce_queue(
    *,
    query: Float[Array, "batch dim"],
    key: Float[Array, "batch dim"],
    queue: Float[Array, "dim size"],
    temperature: float | Float[Array, ""] = 0.07,
    normalize: bool = False,
) -> tuple[Float[Array, "batch candidates"], Float[Array, ""]]:
    """Contrasts each query with its own key against a queue of earlier keys (L_info).

    ``l_n = [q_n . k_n, q_n^T Q] / temperature`` and ``L = mean_n -log softmax(l_n)_0``.  No
    gradient reaches the key or the queue.

    Args:
        query: embeddings z_q of the trained encoder (N, D), unit length unless ``normalize``.
        key: embeddings z_k of the momentum encoder (N, D), of the same samples.
        queue: earlier keys as columns Q (D, K), unit length.
        temperature: tau > 0.
        normalize: scale queries and keys, not the queue, to unit length first.

    Returns:
        Logits (N, 1 + K) with the positive at index 0, and the mean loss () >= 0; float32 for
        half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 1911.05722, equation 1; arXiv 2211.13466, loss of the basic view.
    """
    logits = queue_logits(
        query=query, key=key, queue=queue, temperature=temperature, normalize=normalize
    )
    return logits, info_nce_loss(logits)


def queue_logits(
    *,
    query: Float[Array, "batch dim"],
    key: Float[Array, "batch dim"],
    queue: Float[Array, "dim size"],
    temperature: float | Float[Array, ""] = 0.07,
    normalize: bool = False,
) -> Float[Array, "batch candidates"]:
    """Similarity of each query to its key and to the queue, divided by the temperature.

    ``l_n = [q_n . k_n, q_n^T Q] / temperature``, without gradient wrt key and queue.

    Args:
        query: embeddings of the trained encoder (N, D), unit length unless ``normalize``.
        key: embeddings of the momentum encoder (N, D), of the same samples.
        queue: earlier keys as columns (D, K), unit length.
        temperature: tau > 0.
        normalize: scale queries and keys, not the queue, to unit length first.

    Returns:
        Logits (N, 1 + K), the positive at index 0; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2211.13466, distribution of a view over {positive key, queue}; the authors' code
        divides by max(norm, 1e-12).
    """
    chex.assert_rank([query, key, queue], 2)
    chex.assert_equal_shape([query, key])
    chex.assert_axis_dimension(queue, 0, query.shape[1])
    query, key, queue = (numerics.at_least_float32(x) for x in (query, key, queue))
    if normalize:
        query, key = numerics.normalize(query), numerics.normalize(key)
    key, queue = jax.lax.stop_gradient((key, queue))
    positive = jnp.sum(query * key, axis=1, keepdims=True)
    # Full precision: the default of some accelerators keeps 10 bits, and 1/tau magnifies them.
    negative = jnp.matmul(query, queue, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([positive, negative], axis=1) / temperature


def info_nce_loss(logits: Float[Array, "batch candidates"]) -> Float[Array, ""]:
    """Cross entropy of candidates of which the first is right.

    ``L = mean_n -log softmax(l_n)_0``.

    Args:
        logits: similarities over temperature (N, 1 + K), the positive at index 0.

    Returns:
        The mean loss () >= 0; float32 for half-precision input.

    Raises:
        AssertionError: if ``logits`` is not a matrix.

    Reference:
        arXiv 1911.05722, equation 1.
    """
    chex.assert_rank(logits, 2)
    return -jnp.mean(jax.nn.log_softmax(numerics.at_least_float32(logits), axis=1)[:, 0])


def nearest_neighbour_positive_mask(
    similarities: Sequence[Num[Array, "batch size"]], k: int = 1
) -> Bool[Array, "batch candidates"]:
    """Marks the own key and, for each view, the ``k`` columns of the queue nearest to it.

    Column 1 + j of row n is marked if j is among the k largest ``S_b[n]`` for any view b: a union,
    so a column found by two views counts once.

    Args:
        similarities: one matrix S_b = z_b^T Q a view, each (N, K); the scale does not matter.
        k: neighbours of each view, 1 <= k <= K; of equal similarities the first is taken.

    Returns:
        The mask (N, 1 + K), between 1 + k and 1 + k * views entries of a row True.

    Raises:
        AssertionError: if the shapes do not agree, or there is no view.

    Reference:
        arXiv 2211.13466, second phase of the training (nearest-neighbour mining of AimCLR).
    """
    chex.assert_rank(list(similarities), 2)
    chex.assert_equal_shape(list(similarities))
    nearest = [jax.lax.top_k(similarity, k)[1] for similarity in similarities]
    index = jnp.concatenate(nearest, axis=1) + 1
    batch, size = similarities[0].shape
    mask = jnp.zeros((batch, 1 + size), bool).at[:, 0].set(True)
    return mask.at[jnp.arange(batch)[:, None], index].set(True)


def multi_positive_nce(
    logits: Float[Array, "batch candidates"], positive_mask: Bool[Array, "batch candidates"]
) -> Float[Array, ""]:
    """InfoNCE with several right answers a row, the mean of their cross entropies.

    ``L = mean_n [-sum_j m_nj log softmax(l_n)_j / sum_j m_nj]``; with the first column alone
    marked it is `info_nce_loss`.

    Args:
        logits: similarities over temperature (N, 1 + K).
        positive_mask: the right answers (N, 1 + K); a row without any counts as 0.

    Returns:
        The mean loss () >= 0; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2211.13466, second phase of the training (nearest-neighbour mining of AimCLR).
    """
    chex.assert_rank([logits, positive_mask], 2)
    chex.assert_equal_shape([logits, positive_mask])
    log_probability = jax.nn.log_softmax(numerics.at_least_float32(logits), axis=1)
    return -jnp.mean(numerics.masked_mean(log_probability, positive_mask, axis=1))


def directional_distribution_loss(
    *,
    strong: Float[Array, "batch candidates"],
    weak: Float[Array, "batch candidates"],
    direction: Direction = "strong_to_weak",
) -> Float[Array, ""]:
    """Pulls the distribution of a strongly augmented view to that of a weaker view (DDM).

    ``strong_to_weak``: ``L = -mean_n sum_j sg(p_weak)_nj log p_strong_nj``, p = softmax of the
    logits and sg the stop-gradient: only the strong view moves.
    ``weak_to_strong``: the same with the roles exchanged, only the weak view moves.
    ``symmetric``: the value of ``strong_to_weak`` without the stop-gradient, both move.

    Args:
        strong: logits of the stronger view (N, 1 + K).
        weak: logits of the weaker view (N, 1 + K), over the same candidates.
        direction: the paper's ``strong_to_weak``, or one of two ablations.

    Returns:
        The mean cross entropy (), not below the entropy of the target; float32 for
        half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.
        ValueError: on another direction.

    Reference:
        arXiv 2211.13466, directional consistency.  The authors take log(softmax), which
        underflows to -inf; log_softmax is the same value in exact arithmetic.
    """
    chex.assert_rank([strong, weak], 2)
    chex.assert_equal_shape([strong, weak])
    if direction == "strong_to_weak":
        return _cross_entropy(target=jax.lax.stop_gradient(weak), prediction=strong)
    if direction == "weak_to_strong":
        return _cross_entropy(target=jax.lax.stop_gradient(strong), prediction=weak)
    if direction == "symmetric":
        return _cross_entropy(target=weak, prediction=strong)
    raise ValueError(
        f"direction must be 'strong_to_weak', 'weak_to_strong' or 'symmetric', not {direction!r}"
    )


def directional_losses(
    *,
    weakest_first: Sequence[Float[Array, "batch candidates"]],
    direction: Direction = "strong_to_weak",
    anchor: Anchor = "adjacent",
) -> Float[Array, " pairs"]:
    """Directional consistency of each view but the weakest with a weaker one.

    ``L_i = H(sg(p_{i-1}), p_i)`` for i = 1 .. k-1: strong learns from normal, normal from basic.
    With ``anchor="weakest"`` all of them learn from the weakest view, ``H(sg(p_0), p_i)``.

    Args:
        weakest_first: logits of k >= 1 views in the order of growing augmentation, each
            (N, 1 + K).
        direction: see `directional_distribution_loss`.
        anchor: the paper's chain, or the flat ablation.

    Returns:
        The losses (k - 1,).

    Raises:
        AssertionError: if the shapes do not agree.
        ValueError: on another direction or anchor.

    Reference:
        arXiv 2211.13466, L_1 and L_2 (two terms in the authors' code, any number here).
    """
    chex.assert_rank(list(weakest_first), 2)
    chex.assert_equal_shape(list(weakest_first))
    if anchor not in ("adjacent", "weakest"):
        raise ValueError(f"anchor must be 'adjacent' or 'weakest', not {anchor!r}")
    losses = [
        directional_distribution_loss(
            strong=strong,
            weak=weakest_first[index if anchor == "adjacent" else 0],
            direction=direction,
        )
        for index, strong in enumerate(weakest_first[1:])
    ]
    if not losses:
        return jnp.zeros(0, jnp.promote_types(weakest_first[0].dtype, jnp.float32))
    return jnp.stack(losses)


def hierarchical_consistency_loss(
    *,
    weakest_first: Sequence[Float[Array, "batch candidates"]],
    direction: Direction = "strong_to_weak",
    anchor: Anchor = "adjacent",
) -> Float[Array, ""]:
    """Mean directional consistency over a chain of growing augmentations.

    ``(1 / (k - 1)) sum_{i=1}^{k-1} H(sg(p_{i-1}), p_i)``.

    Args:
        weakest_first: logits of k >= 1 views in the order of growing augmentation, each
            (N, 1 + K).
        direction: see `directional_distribution_loss`.
        anchor: see `directional_losses`.

    Returns:
        The mean loss (), 0 for a single view; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.
        ValueError: on another direction or anchor.

    Reference:
        arXiv 2211.13466, (L_1 + L_2) / 2.
    """
    losses = directional_losses(weakest_first=weakest_first, direction=direction, anchor=anchor)
    return jnp.sum(losses) / max(len(losses), 1)


def hiclr_loss(
    *,
    weakest_first: Sequence[Float[Array, "batch dim"]],
    key: Float[Array, "batch dim"],
    queue: Float[Array, "dim size"],
    temperature: float | Float[Array, ""] = 0.07,
    mining: bool | Bool[Array, ""] = False,
    top_k: int = 1,
    direction: Direction = "strong_to_weak",
    anchor: Anchor = "adjacent",
    normalize: bool = False,
) -> HierarchicalLoss:
    """The objective of HiCLR: contrast of the weakest view, consistency of the stronger ones.

    ``L = L_info(z_0) + (1 / (k - 1)) sum_{i=1}^{k-1} H(sg(p_{i-1}), p_i)``.  In the paper's
    direction the gradient wrt each view comes from its own term alone.  With ``mining``, the
    queue's nearest neighbours of all the views are further positives of the weakest view.

    Args:
        weakest_first: embeddings of k >= 1 views in the order of growing augmentation
            (basic, normal, strong), each (N, D); unit length unless ``normalize``.
        key: embeddings of the momentum encoder (N, D), without gradient.
        queue: earlier keys as columns (D, K), without gradient.
        temperature: tau > 0.
        mining: whether the second phase has begun; may be traced.
        top_k: neighbours of each view in the second phase.
        direction: see `directional_distribution_loss`.
        anchor: see `directional_losses`.
        normalize: scale views and keys, not the queue, to unit length first.

    Returns:
        `HierarchicalLoss`; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.
        ValueError: on another direction or anchor.

    Reference:
        arXiv 2211.13466, total loss.  Whether the paper sums or averages over more than two
        stronger views is not known; its code has two and averages.
    """
    logits = [
        queue_logits(query=view, key=key, queue=queue, temperature=temperature, normalize=normalize)
        for view in weakest_first
    ]
    positive_mask = jnp.zeros(logits[0].shape, bool).at[:, 0].set(True)
    # A plain False costs nothing; a traced one needs both masks.
    if mining is not False:
        neighbours = nearest_neighbour_positive_mask([view[:, 1:] for view in logits], top_k)
        positive_mask = jnp.where(mining, neighbours, positive_mask)
    info_nce = multi_positive_nce(logits[0], positive_mask)
    consistency = directional_losses(weakest_first=logits, direction=direction, anchor=anchor)
    total = info_nce + jnp.sum(consistency) / max(len(consistency), 1)
    return HierarchicalLoss(total, info_nce, consistency, jnp.stack(logits), positive_mask)


def ema_update(
    *,
    target: PyTree[Float[Array, "..."]],
    online: PyTree[Float[Array, "..."]],
    momentum: float | Float[Array, ""] = 0.999,
) -> PyTree[Float[Array, "..."]]:
    """Lets slow parameters follow trained ones.

    ``theta_k <- m theta_k + (1 - m) theta_q``, for parameters; batch-norm statistics are not
    meant to be passed, they follow the slow network's own batches.

    Args:
        target: parameters theta_k of the key encoder.
        online: parameters theta_q of the query encoder, of the same structure.
        momentum: m in [0, 1]; 1 keeps ``target``, 0 copies ``online``.

    Returns:
        The new target parameters in their own dtypes.  Keep them in float32: at m = 0.999 a
        bfloat16 parameter may round back to where it was.

    Raises:
        AssertionError: if the trees or the shapes of their leaves differ.

    Reference:
        arXiv 1911.05722, equation 2.
    """
    chex.assert_trees_all_equal_shapes(target, online)

    def blend(slow: Array, fast: Array) -> Array:
        wide = numerics.at_least_float32(slow)
        return (momentum * wide + (1 - momentum) * fast).astype(slow.dtype)

    return jax.tree.map(blend, target, online)


def queue_init(key: PRNGKeyArray, *, dim: int, size: int) -> Float[Array, "dim size"]:
    """A queue of random directions.

    Args:
        key: random key.
        dim: length D of an embedding.
        size: number K of keys.

    Returns:
        Unit columns, uniform on the sphere (D, K).

    Reference:
        arXiv 1911.05722, authors' code.
    """
    return numerics.normalize(jax.random.normal(key, (dim, size)), axis=0)


def queue_push(
    *,
    queue: Float[Array, "dim size"],
    pointer: Int[Array, ""],
    keys: Float[Array, "batch dim"],
) -> tuple[Float[Array, "dim size"], Int[Array, ""]]:
    """Replaces the oldest keys of a ring buffer by new ones.

    ``Q[:, (ptr + n) mod K] <- k_n`` and ``ptr <- (ptr + N) mod K``.

    Args:
        queue: keys as columns (D, K).
        pointer: column of the oldest key, in [0, K).
        keys: new keys (N, D) with N <= K, oldest first; stored as they are, without gradient.

    Returns:
        The new queue (D, K) in its dtype, and the new pointer.

    Raises:
        AssertionError: if the shapes do not agree, or more keys come than the queue holds.

    Reference:
        arXiv 1911.05722, algorithm 1.  The authors demand that N divides K; wrapping around
        needs no such demand and gives the same queue under it.
    """
    chex.assert_rank([queue, pointer, keys], [2, 0, 2])
    chex.assert_axis_dimension(keys, 1, queue.shape[0])
    chex.assert_axis_dimension_lteq(keys, 0, queue.shape[1])
    size = queue.shape[1]
    columns = (pointer + jnp.arange(keys.shape[0])) % size
    keys = jax.lax.stop_gradient(keys).astype(queue.dtype)
    return queue.at[:, columns].set(keys.T), (pointer + keys.shape[0]) % size


def _cross_entropy(*, target: Array, prediction: Array) -> Array:
    """Mean over the rows of -sum softmax(target) log softmax(prediction)."""
    probability = jax.nn.softmax(numerics.at_least_float32(target), axis=1)
    log_probability = jax.nn.log_softmax(numerics.at_least_float32(prediction), axis=1)
    return -jnp.mean(jnp.sum(probability * log_probability, axis=1))
