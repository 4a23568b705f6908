"""Image retrieval: descriptor pooling, metric-learning losses and retrieval metrics.

The losses and the pooling are JAX functions.  The metrics sort hundreds of thousands of pairs once
an evaluation: they are host functions in NumPy float64 and belong outside ``jit``.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from asym import numerics, similarity

# Shortest squared distance of the batch-hard triplet, as in the authors' code.
_SMALLEST_SQUARED_DISTANCE = 1e-12

HostScores = Float[np.ndarray, " pairs"]
HostMatches = Bool[np.ndarray, " pairs"]


class AslLoss(NamedTuple):
    """The asymmetrical-similarity objective and the unweighted parts that it is made of."""

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    triplet: Float[Array, ""]
    norm_ratio: Float[Array, ""]


class PrecisionRecall(NamedTuple):
    """Precision and recall after each candidate pair, from the best score down."""

    precision: Float[np.ndarray, " kept"]
    recall: Float[np.ndarray, " kept"]
    score: Float[np.ndarray, " kept"]


def gem_pool(
    x: Float[Array, "*batch height width channels"],
    p: float | Float[Array, ""],
    eps: float = 1e-6,
) -> Float[Array, "*batch channels"]:
    """Generalised-mean pooling: the average for ``p = 1``, the maximum as ``p`` grows.

    ``y_c = (mean_{h,w} max(x_{hwc}, eps)^p)^(1/p)``, evaluated on entries divided by the largest
    of their channel, so that the power does not overflow; the result does not depend on the
    divisor, so no gradient passes through it (stop-gradient).

    Args:
        x: feature maps (..., H, W, C).
        p: exponent, > 0; learnable.
        eps: lower bound of the entries, > 0.

    Returns:
        Descriptors (..., C), >= eps; float32 for half-precision input.

    Raises:
        AssertionError: if ``x`` has fewer than three axes.

    Reference:
        Radenovic, Tolias and Chum, TPAMI 2019; p = 3 and eps = 1e-6 in arXiv 2205.12358's baseline.
    """
    chex.assert_shape(x, (..., None, None, None))
    x = jnp.maximum(numerics.at_least_float32(x), eps)
    largest = jax.lax.stop_gradient(jnp.max(x, axis=(-3, -2)))
    mean = jnp.mean((x / largest[..., None, None, :]) ** p, axis=(-3, -2))
    return largest * mean ** (1 / p)


def batch_hard_distances(
    features: Float[Array, "batch dim"], labels: Int[Array, " batch"]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Distance of each row to the farthest of its class and to the nearest of the others.

    ``D_ij = sqrt(max(|x_i|^2 + |x_j|^2 - 2 x_i.x_j, 1e-12))``; the row itself counts as one of its
    class, so there is always a positive.

    Args:
        features: features (B, D), not normalised by this function.
        labels: class of each row (B,).

    Returns:
        ``positive``, ``negative``: hardest distances (B,); ``negative`` is +inf for a row whose
        class is the whole batch.  float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2205.12358, baseline's triplet loss.
    """
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    features = numerics.at_least_float32(features)
    # Full precision: the expansion cancels, and default matrix products may keep only 10 bits.
    product = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.sum(jnp.square(features), axis=1)
    squared = square[:, None] + square[None] - 2 * product
    # A row is at distance exactly 0 from itself; what cancellation leaves there would be noise.
    squared = jnp.where(jnp.eye(len(labels), dtype=bool), 0, squared)
    distance = jnp.sqrt(jnp.maximum(squared, _SMALLEST_SQUARED_DISTANCE))
    same = labels[:, None] == labels[None]
    positive = numerics.masked_max(distance, same, axis=1)
    return positive, numerics.masked_min(distance, ~same, axis=1)


def soft_batch_hard_triplet(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    margin: float | Float[Array, ""] = 0.0,
) -> Float[Array, ""]:
    """Soft triplet loss on the hardest positive and the hardest negative of each row.

    ``mean_i [(1 - m) softplus(d_p - d_n) + m softplus(d_n - d_p)]``: the cross entropy between
    ``softmax(d_p, d_n)`` and the target ``(m, 1 - m)``.  A row without a negative adds 0.

    Args:
        features: features (B, D), not normalised by this function.
        labels: class of each row (B,).
        margin: target mass on the positive distance, in [0, 1].

    Returns:
        The mean loss, >= 0; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2205.12358, baseline's soft-margin triplet loss.
    """
    positive, negative = batch_hard_distances(features, labels)
    has_negative = jnp.isfinite(negative)
    gap = jnp.where(has_negative, positive - jnp.where(has_negative, negative, 0), 0)
    loss = (1 - margin) * jax.nn.softplus(gap) + margin * jax.nn.softplus(-gap)
    return jnp.mean(jnp.where(has_negative, loss, 0))


def label_smoothed_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    eps: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Cross entropy against the one-hot target mixed with the uniform distribution.

    ``mean_i sum_c -[(1 - eps) 1{c = y_i} + eps / C] log softmax(z_i)_c``.

    Args:
        logits: unnormalised log-probabilities (B, C).
        labels: class of each row, in [0, C) (B,).
        eps: mass given to the uniform distribution, in [0, 1].

    Returns:
        The mean loss, >= 0; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2205.12358, baseline's classification loss, eps = 0.1.
    """
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_equal_shape_prefix([logits, labels], 1)
    log_probability = jax.nn.log_softmax(numerics.at_least_float32(logits))
    target = jnp.take_along_axis(log_probability, labels[:, None], axis=1)[:, 0]
    return -jnp.mean((1 - eps) * target + eps * jnp.mean(log_probability, axis=1))


def pairwise_cosface(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    margin: float | Float[Array, ""] = 0.35,
    scale: float | Float[Array, ""] = 32.0,
) -> Float[Array, ""]:
    """Every positive cosine should exceed every negative cosine by a margin.

    ``mean_i softplus(LSE_{j: y_j = y_i, j != i}(-s c_ij) + LSE_{j: y_j != y_i}(s (c_ij + m)))``
    with cosines ``c_ij``.  A row without a positive or without a negative adds 0.

    Args:
        features: features (B, D) of any length.
        labels: class of each row (B,).
        margin: wanted difference of the cosines, ``m``.
        scale: inverse temperature ``s`` > 0.

    Returns:
        The mean loss, >= 0; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2205.12358, baseline package (not used by its released trainer).
    """
    chex.assert_rank([features, labels], [2, 1])
    chex.assert_equal_shape_prefix([features, labels], 1)
    unit = numerics.normalize(features)
    cosine = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
    same = labels[:, None] == labels[None]
    other_view = same & ~jnp.eye(len(labels), dtype=bool)
    pull = numerics.masked_logsumexp(-scale * cosine, other_view, axis=1)
    push = numerics.masked_logsumexp(scale * (cosine + margin), ~same, axis=1)
    return jnp.mean(jax.nn.softplus(pull + push))


def asl_loss(
    features: Float[Array, "groups views dim"],
    logits: Float[Array, "groups views classes"],
    labels: Int[Array, "groups views"],
    *,
    hi: Int[Array, " groups"],
    lo: Int[Array, " groups"],
    metric_features: Float[Array, "groups views metric_dim"] | None = None,
    cross_entropy_weight: float | Float[Array, ""] = 10.0,
    triplet_weight: float | Float[Array, ""] = 1.0,
    norm_ratio_weight: float | Float[Array, ""] = 1.0,
    smoothing: float | Float[Array, ""] = 0.1,
    margin: float | Float[Array, ""] = 0.0,
) -> AslLoss:
    """Asymmetrical-similarity objective: what an image shows, and how much of it.

    ``L = w_ce L_ce + w_tri L_tri + w_nr L_nr``.

    Args:
        features: un-normalised features of K views of each of G classes (G, K, D).
        logits: class scores of the same views (G, K, C).
        labels: class of each view, in [0, C) (G, K).
        hi: index of the view with more content of each group (G,).
        lo: index of the view with less content of each group (G,).
        metric_features: features (G, K, D') for the triplet loss where they are not ``features``,
            such as normalised ones that leave the length to the norm ratio.
        cross_entropy_weight: weight ``w_ce`` of the label-smoothed cross entropy.
        triplet_weight: weight ``w_tri`` of the soft batch-hard triplet loss.
        norm_ratio_weight: weight ``w_nr`` of the norm-ratio loss; 0 is the symmetric control.
        smoothing: label smoothing of the cross entropy, in [0, 1].
        margin: margin of the triplet loss, in [0, 1].

    Returns:
        The weighted total and its unweighted parts, scalars.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2205.12358 and its baseline's trainer; the value of w_nr is not published.
    """
    metric_features = features if metric_features is None else metric_features
    chex.assert_rank([features, logits, labels, metric_features], [3, 3, 2, 3])
    chex.assert_equal_shape_prefix([features, logits, labels, metric_features], 2)
    flat_labels = labels.reshape(-1)
    cross_entropy = label_smoothed_cross_entropy(_rows(logits), flat_labels, smoothing)
    triplet = soft_batch_hard_triplet(_rows(metric_features), flat_labels, margin)
    norm_ratio = similarity.norm_ratio_loss(features, hi=hi, lo=lo)
    total = (
        cross_entropy_weight * cross_entropy
        + triplet_weight * triplet
        + norm_ratio_weight * norm_ratio
    )
    return AslLoss(total, cross_entropy, triplet, norm_ratio)


def precision_recall_curve(
    scores: HostScores, is_match: HostMatches, num_positives: int
) -> PrecisionRecall:
    """Precision and recall of pooled candidate pairs, ties in the worst order (host function).

    Candidates are sorted by score, descending, and wrong ones come first among equal scores.
    ``precision_i = tp_i / i`` and ``recall_i = tp_i / P``, ``tp_i`` being the matches up to i.

    Args:
        scores: score of each candidate pair (N,); a pair scored -inf is deleted.
        is_match: whether each candidate is a ground-truth pair (N,).
        num_positives: number ``P`` >= 1 of ground-truth pairs, found or not.

    Returns:
        Precision, recall and score of the remaining candidates, in sorted order.

    Raises:
        ValueError: if the lengths differ, a score is NaN or there is no positive.

    Reference:
        Evaluation of the Image Similarity Challenge 2021, used by arXiv 2205.12358.
    """
    if scores.shape != is_match.shape:
        raise ValueError(f"{len(scores)} scores, but {len(is_match)} matches")
    if num_positives < 1:
        raise ValueError(f"num_positives must be at least 1, not {num_positives}")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN and cannot be ranked")
    kept = scores > -np.inf
    kept_scores = scores[kept].astype(np.float64)
    kept_matches = is_match[kept]
    order = np.lexsort((kept_matches, -kept_scores))
    true_positives = np.cumsum(kept_matches[order], dtype=np.int64)
    return PrecisionRecall(
        precision=true_positives / np.arange(1, len(order) + 1, dtype=np.float64),
        recall=true_positives / np.float64(num_positives),
        score=kept_scores[order],
    )


def micro_average_precision(scores: HostScores, is_match: HostMatches, num_positives: int) -> float:
    """Average precision of the pooled candidates of all queries (host function).

    ``muAP = sum_i (recall_i - recall_{i-1}) precision_i``; a pair never proposed adds nothing.

    Args:
        scores: score of each candidate pair (N,); a pair scored -inf is deleted.
        is_match: whether each candidate is a ground-truth pair (N,).
        num_positives: number >= 1 of ground-truth pairs, found or not.

    Returns:
        The average precision, in [0, 1].

    Raises:
        ValueError: as `precision_recall_curve`.

    Reference:
        Evaluation of the Image Similarity Challenge 2021, used by arXiv 2205.12358.
    """
    curve = precision_recall_curve(scores, is_match, num_positives)
    return float(np.sum(np.diff(curve.recall, prepend=0.0) * curve.precision))


def recall_at_precision(
    scores: HostScores, is_match: HostMatches, num_positives: int, min_precision: float = 0.9
) -> tuple[float, float]:
    """Largest recall among the operating points that are precise enough (host function).

    Args:
        scores: score of each candidate pair (N,); a pair scored -inf is deleted.
        is_match: whether each candidate is a ground-truth pair (N,).
        num_positives: number >= 1 of ground-truth pairs, found or not.
        min_precision: precision that a point needs, in [0, 1].

    Returns:
        ``recall`` and the score ``threshold`` of the first point that reaches it; both NaN if no
        point is precise enough.

    Raises:
        ValueError: as `precision_recall_curve`.

    Reference:
        Evaluation of the Image Similarity Challenge 2021, used by arXiv 2205.12358.
    """
    curve = precision_recall_curve(scores, is_match, num_positives)
    precise = np.flatnonzero(curve.precision >= min_precision)
    if not len(precise):
        return float("nan"), float("nan")
    best = precise[np.argmax(curve.recall[precise])]
    return float(curve.recall[best]), float(curve.score[best])


def match_ground_truth(
    *,
    query: Shaped[np.ndarray, " pairs"],
    reference: Shaped[np.ndarray, " pairs"],
    ground_truth: Shaped[np.ndarray, "positives 2"],
) -> HostMatches:
    """Marks the candidate pairs that are ground-truth pairs (host function).

    Args:
        query: identifier of the query of each candidate, numbers or strings (N,).
        reference: identifier of the reference of each candidate (N,).
        ground_truth: rows of query and reference identifiers (P, 2).

    Returns:
        True where a candidate is a row of ``ground_truth`` (N,).
    """
    candidates, truth = _pair_numbers(query, reference, ground_truth)
    return np.isin(candidates, truth)


def recall_at_rank(
    scores: HostScores,
    *,
    query: Shaped[np.ndarray, " pairs"],
    reference: Shaped[np.ndarray, " pairs"],
    ground_truth: Shaped[np.ndarray, "positives 2"],
    rank: int = 1,
) -> float:
    """Share of the ground-truth pairs ranked high enough among their query's candidates.

    The rank of a pair is ``#{candidates of the query scored >= its score} - 1``: ties count
    against it.  A pair that is not among the candidates is a miss.  Host function.

    Args:
        scores: score of each candidate pair (N,); a pair scored -inf is deleted.
        query: identifier of the query of each candidate, numbers or strings (N,).
        reference: identifier of the reference of each candidate (N,).
        ground_truth: rows of query and reference identifiers (P, 2).
        rank: number >= 1 of places that count as found.

    Returns:
        The recall, in [0, 1].

    Raises:
        ValueError: if a score is NaN or there is no ground-truth pair.

    Reference:
        Evaluation of the Image Similarity Challenge 2021, used by arXiv 2205.12358.
    """
    if not len(ground_truth):
        raise ValueError("ground_truth is empty")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN and cannot be ranked")
    kept = scores > -np.inf
    scores, query, reference = scores[kept], query[kept], reference[kept]
    if not len(scores):
        return 0.0
    candidates, truth = _pair_numbers(query, reference, ground_truth)
    places = _pessimistic_places(scores, np.unique(query, return_inverse=True)[1])
    order = np.lexsort((places, candidates))
    position = np.searchsorted(candidates[order], truth)
    nearest = order[np.minimum(position, len(order) - 1)]
    found = candidates[nearest] == truth
    return float(np.mean(found & (places[nearest] < rank)))


def _rows(x: Array) -> Array:
    """Groups and views as one axis of rows."""
    return x.reshape(-1, x.shape[-1])


def _pair_numbers(
    query: np.ndarray, reference: np.ndarray, ground_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One number for each distinct pair of identifiers, of the candidates and of the truth."""

    def number(candidates: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return np.unique(np.concatenate([candidates, truth]), return_inverse=True)[1]

    queries, references = number(query, ground_truth[:, 0]), number(reference, ground_truth[:, 1])
    pairs = queries.astype(np.int64) * (references.max(initial=0) + 1) + references
    return pairs[: len(query)], pairs[len(query) :]


def _pessimistic_places(scores: np.ndarray, group: np.ndarray) -> np.ndarray:
    """For each entry the number of others in its group that score at least as high."""
    order = np.lexsort((scores, group))
    group, scores = group[order], scores[order]
    new_group = np.append(True, group[1:] != group[:-1])
    new_run = new_group | np.append(True, scores[1:] != scores[:-1])
    index = np.arange(len(order))
    run_start = np.maximum.accumulate(np.where(new_run, index, 0))
    group_end = np.append(np.flatnonzero(new_group)[1:], len(order))[np.cumsum(new_group) - 1]
    places = np.empty(len(order), dtype=np.int64)
    places[order] = group_end - run_start - 1
    return places
