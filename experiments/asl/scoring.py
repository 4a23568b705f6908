"""Test time: rank references by cosine, reject by length, and measure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import numerics, retrieval, similarity


class Described(NamedTuple):
    """What the network says of a set of images.

    Attributes:
      descriptor: Unit vectors for the cosine, shape (N, D).
      length: Un-normalised features whose norm is compared, shape (N, D').
      scale: Predicted kept area, shape (N,); zeros without the regression baseline's head.
    """

    descriptor: Any
    length: Any
    scale: Any


class Candidates(NamedTuple):
    """Pairs kept for scoring, one entry a pair.

    Attributes:
      query: Index of the query.
      reference: Index of the reference.
      score: Cosine, normalised by `stretch` if asked for.
    """

    query: np.ndarray
    reference: np.ndarray
    score: np.ndarray


class Truth(NamedTuple):
    """What the candidates are judged by.

    Attributes:
      pairs: True (query, reference) pairs, shape (P, 2).
      reversed_pairs: Hard negatives (query, reference): the query holds more, shape (M, 2).
    """

    pairs: np.ndarray
    reversed_pairs: np.ndarray


def candidates(
    queries: Described,
    references: Described,
    *,
    top_k: int,
    max_results: int,
    stretch: float = 0.0,
    training_centre: np.ndarray | None = None,
    chunk: int = 1024,
) -> Candidates:
    """The most similar references of every query, then the most similar pairs of all.

    Args:
      queries: The queries.
      references: The references.
      top_k: References kept a query.
      max_results: Pairs kept in all.
      stretch: Factor of score normalisation: subtract it times the query's mean similarity to the
        training images.
      training_centre: Mean descriptor of the training images, for `stretch`: the mean of inner
        products is the inner product with the mean.
      chunk: Queries compared at once.

    Returns:
      At most `max_results` pairs.
    """
    top_k = min(top_k, len(references.descriptor))

    @jax.jit
    def nearest(rows: jax.Array, against: jax.Array) -> Any:
        cosine = jnp.matmul(rows, against.T, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.top_k(cosine, top_k)

    against = jnp.asarray(references.descriptor)
    scores, found = [], []
    for start in range(0, len(queries.descriptor), chunk):
        score, index = nearest(jnp.asarray(queries.descriptor[start : start + chunk]), against)
        scores.append(np.asarray(score, np.float64))
        found.append(np.asarray(index))
    score = np.concatenate(scores)
    if training_centre is not None:
        score -= stretch * (queries.descriptor @ training_centre)[:, None]
    query = np.repeat(np.arange(len(score)), top_k)
    flat, reference = score.reshape(-1), np.concatenate(found).reshape(-1)
    if flat.size > max_results:
        kept = np.argpartition(-flat, max_results - 1)[:max_results]
        query, reference, flat = query[kept], reference[kept], flat[kept]
    return Candidates(query, reference, flat)


def norm_ratios(queries: Described, references: Described, pairs: np.ndarray) -> np.ndarray:
    """The norm ratio of given pairs.

    Args:
      queries: The queries.
      references: The references.
      pairs: (query, reference) indices, shape (P, 2).

    Returns:
      ||f_q|| / ||f_r||, shape (P,).
    """
    ratio = similarity.norm_ratio(
        query=jnp.asarray(queries.length[pairs[:, 0]]),
        reference=jnp.asarray(references.length[pairs[:, 1]]),
    )
    return np.asarray(ratio, np.float64)


def measure(
    queries: Described,
    references: Described,
    found: Candidates,
    truth: Truth,
    *,
    rule: str,
    threshold: float,
    soft_beta: float,
    rng: np.random.Generator,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Scores the candidates by a rule and judges them.

    Args:
      queries: The queries.
      references: The references.
      found: Their candidate pairs.
      truth: Which pairs are copies.
      rule: `cosine` keeps all; `norm` rejects longer queries; `soft` discounts them; `scale`
        rejects by the predicted area; `random` rejects a random half.
      threshold: Largest norm ratio that is kept.
      soft_beta: Strength of the discount.
      rng: For `random`.

    Returns:
      Metrics, and the arrays of the figures: precision-recall curves and norm ratios.
    """
    pairs = np.stack([found.query, found.reference], axis=1)
    match = retrieval.match_ground_truth(
        query=found.query, reference=found.reference, ground_truth=truth.pairs
    )
    ratio = norm_ratios(queries, references, pairs)
    by_norm = np.where(ratio <= threshold, found.score, -np.inf)
    scores = {
        "cosine": found.score,
        "norm": by_norm,
        "soft": found.score * np.maximum(ratio, 1.0) ** -soft_beta,
        "scale": np.where(
            queries.scale[found.query] <= references.scale[found.reference], found.score, -np.inf
        ),
        "random": np.where(rng.random(len(ratio)) < 0.5, found.score, -np.inf),
    }[rule]
    copies = norm_ratios(queries, references, truth.pairs)
    reversed_copies = norm_ratios(queries, references, truth.reversed_pairs)
    kept, dropped = copies < 1, reversed_copies > 1
    positives = len(truth.pairs)
    recall, _ = retrieval.recall_at_precision(scores, match, positives, 0.9)
    ranked = {
        "query": found.query,
        "reference": found.reference,
        "ground_truth": truth.pairs,
    }
    metrics = {
        "mu_ap": retrieval.micro_average_precision(scores, match, positives),
        "mu_ap_cosine": retrieval.micro_average_precision(found.score, match, positives),
        "mu_ap_norm_filter": retrieval.micro_average_precision(by_norm, match, positives),
        # Precision that is never reached recalls nothing.
        "recall_at_p90": 0.0 if np.isnan(recall) else recall,
        "recall_at_rank1": retrieval.recall_at_rank(scores, **ranked, rank=1),
        "recall_at_rank10": retrieval.recall_at_rank(scores, **ranked, rank=10),
        "copies_kept": float(kept.mean()),
    }
    if len(reversed_copies):
        metrics["reversed_dropped"] = float(dropped.mean())
        metrics["direction_accuracy"] = float((kept.mean() + dropped.mean()) / 2)
    arrays = {"ratio_copies": copies, "ratio_reversed": reversed_copies}
    for name, values in (("cosine", found.score), ("rule", scores)):
        curve = retrieval.precision_recall_curve(values, match, positives)
        arrays[f"precision_{name}"], arrays[f"recall_{name}"] = curve.precision, curve.recall
    return metrics, arrays


def describe(single: Any, several: Sequence[Any], norm_feature: str) -> Described:
    """Descriptors and lengths of a batch; traceable.

    Args:
      single: The network's `Features` at the input size, whose lengths count.
      several: Its `Features` at each size that the descriptor averages.
      norm_feature: Name of the output that carries the length.

    Returns:
      Arrays.
    """
    units = [numerics.normalize(features.projection) for features in several]
    mean = jnp.mean(jnp.stack(units), axis=0)
    return Described(
        numerics.normalize(mean),
        getattr(single, norm_feature),
        jnp.zeros(len(single.pool)) if single.scale is None else single.scale,
    )
