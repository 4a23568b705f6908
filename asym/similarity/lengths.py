"""Asymmetric similarity: which of two alike images holds the other?

The direction of an embedding tells *what* an image shows and is compared by the symmetric cosine;
its length tells *how much* of it, and the ratio of two lengths is a comparison with a direction,
``R(q -> r) = ||f_q|| / ||f_r|| = 1 / R(r -> q)``.  A copy holds less than its source, so a query
longer than its reference cannot be an edited copy of it.

Reference:
    Wang, Sun and Yang, "A benchmark and asymmetrical-similarity learning for practical image copy
    detection", AAAI 2023, arXiv 2205.12358.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from asym import numerics


def norm_ratio(
    *,
    query: Float[Array, "*#batch dim"],
    reference: Float[Array, "*#batch dim"],
    eps: float = 1e-12,
) -> Float[Array, "*#batch"]:
    """How much more content a query holds than a reference, as the ratio of their lengths.

    ``R(q -> r) = ||f_q||_2 / ||f_r||_2``; swapping the roles gives ``1 / R``.

    Args:
        query: un-normalised features of the queries (..., D).
        reference: un-normalised features of the references (..., D), broadcast against ``query``.
        eps: shortest length told apart from 0; two zero vectors have ratio 1.

    Returns:
        Ratios > 0 (...); float32 for half-precision input.

    Raises:
        AssertionError: if the features have different dimensions.

    Reference:
        arXiv 2205.12358, introduction and test-time filter.  The authors divide without eps.
    """
    chex.assert_equal_shape_suffix([query, reference], 1)
    return numerics.safe_norm(query, eps=eps) / numerics.safe_norm(reference, eps=eps)


def passes_filter(
    *,
    query: Float[Array, "*#batch dim"],
    reference: Float[Array, "*#batch dim"],
    threshold: float | Float[Array, ""] = 1.0,
    eps: float = 1e-12,
) -> Bool[Array, "*#batch"]:
    """Whether a query may be an edited copy of a reference, judged by the length alone.

    ``R(q -> r) <= threshold``, evaluated as ``||f_q|| <= threshold ||f_r||`` so that no rounding
    of a quotient decides: at threshold 1 at most one direction of a pair passes, both only at
    exactly equal lengths.

    Args:
        query: un-normalised features of the queries (..., D).
        reference: un-normalised features of the references (..., D), broadcast against ``query``.
        threshold: largest norm ratio that is kept, > 0.
        eps: shortest length told apart from 0.

    Returns:
        True for the pairs to keep (...).

    Raises:
        AssertionError: if the features have different dimensions.

    Reference:
        arXiv 2205.12358, test-time filter of the released code (strictly greater is deleted).
    """
    chex.assert_equal_shape_suffix([query, reference], 1)
    longest = threshold * numerics.safe_norm(reference, eps=eps)
    return numerics.safe_norm(query, eps=eps) <= longest


def asymmetric_similarity(
    *,
    query: Float[Array, "queries dim"],
    reference: Float[Array, "references dim"],
    threshold: float | Float[Array, ""] = 1.0,
    mode: Literal["hard", "soft"] = "hard",
    beta: float | Float[Array, ""] = 1.0,
    eps: float = 1e-12,
) -> Float[Array, "queries references"]:
    """Similarity with a direction: the cosine, unless the query holds more than the reference.

    ``hard``: ``s = cos(f_q, f_r)`` if ``||f_q|| <= threshold ||f_r||``, else -inf (deleted).
    ``soft``: ``s = cos(f_q, f_r) min(1, ||f_r|| / ||f_q||)^beta``, which deletes nothing.

    Args:
        query: un-normalised features (Nq, D); normalising them first would erase the length.
        reference: un-normalised features (Nr, D).
        threshold: largest norm ratio that ``hard`` keeps, > 0; unused by ``soft``.
        mode: ``hard`` is the paper's filter, ``soft`` an ablation.
        beta: strength of the ``soft`` discount, >= 0; unused by ``hard``.
        eps: shortest length told apart from 0.

    Returns:
        Scores (Nq, Nr), in [-1, 1] or -inf; float32 for half-precision input.

    Raises:
        AssertionError: if the features are not matrices with equal columns.
        ValueError: if ``mode`` is neither ``hard`` nor ``soft``.

    Reference:
        arXiv 2205.12358, test-time scoring; the authors fix the threshold at 1.
    """
    chex.assert_rank([query, reference], 2)
    chex.assert_equal_shape_suffix([query, reference], 1)
    # Full precision: the default of some accelerators keeps 10 bits, and cosines are ranked.
    cosine = jnp.matmul(
        numerics.normalize(query, eps=eps),
        numerics.normalize(reference, eps=eps).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    if mode == "hard":
        keep = passes_filter(
            query=query[:, None], reference=reference[None], threshold=threshold, eps=eps
        )
        return jnp.where(keep, cosine, -jnp.inf)
    if mode == "soft":
        length = numerics.safe_norm(reference, eps=eps)[None]
        # The larger length below: a quotient of at most 1 cannot overflow.
        longest = jnp.maximum(length, numerics.safe_norm(query, eps=eps)[:, None])
        return cosine * (length / longest) ** beta
    raise ValueError(f"mode must be 'hard' or 'soft', not {mode!r}")


def directed_norm_ratio_loss(
    *,
    source: Float[Array, "*#batch dim"],
    copy: Float[Array, "*#batch dim"],
    eps: float = 1e-12,
) -> Float[Array, "*#batch"]:
    """Pulls the feature of a source to be longer than that of its copy.

    ``l(r -> q) = exp(1 - ||f_r||_2 / ||f_q||_2)``, between 0 and e, 1 at equal lengths.  Its
    gradient is radial: it changes lengths and never directions.

    Args:
        source: features of the views with more content, ``f_r`` (..., D).
        copy: features of the views with less content, ``f_q`` (..., D), broadcast against it.
        eps: shortest length told apart from 0.

    Returns:
        Losses (...); float32 for half-precision input.

    Raises:
        AssertionError: if the features have different dimensions.

    Reference:
        arXiv 2205.12358, norm-ratio loss, in the reading "source to copy" of its pairs.
    """
    chex.assert_equal_shape_suffix([source, copy], 1)
    return _norm_ratio_penalty(
        longer=numerics.safe_norm(source, eps=eps), shorter=numerics.safe_norm(copy, eps=eps)
    )


def norm_ratio_loss(
    features: Float[Array, "groups views dim"],
    *,
    hi: Int[Array, " groups"],
    lo: Int[Array, " groups"],
    eps: float = 1e-12,
) -> Float[Array, ""]:
    """Norm-ratio loss of one pair of views per group (L_nr).

    ``L_nr = (1/G) sum_g exp(1 - ||f_{g,hi}||_2 / ||f_{g,lo}||_2)``.  A group with ``hi == lo``
    adds the constant 1 and no gradient, which is also how a group without a known direction is
    left out: give its views equal scales.

    Args:
        features: un-normalised features of K views of each of G classes (G, K, D).
        hi: index in [0, K) of the view with more content (G,).
        lo: index in [0, K) of the view with less content (G,).
        eps: shortest length told apart from 0.

    Returns:
        The mean loss, in (0, e); float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2205.12358, norm-ratio loss; the authors divide without eps.
    """
    chex.assert_rank([features, hi, lo], [3, 1, 1])
    chex.assert_equal_shape_prefix([features, hi, lo], 1)
    lengths = numerics.safe_norm(features, eps=eps)
    penalty = _norm_ratio_penalty(longer=_pick(lengths, hi), shorter=_pick(lengths, lo))
    # Without the where a tied group would keep a gradient of rounding noise.
    return jnp.mean(jnp.where(hi == lo, 1, penalty))


def norm_ratio_loss_all_pairs(
    features: Float[Array, "groups views dim"],
    scales: Float[Array, "groups views"],
    *,
    eps: float = 1e-12,
) -> Float[Array, ""]:
    """Norm-ratio loss over every pair of views with different scales, instead of one per group.

    The mean over the groups of the mean over the pairs ``s_a > s_b`` of
    ``exp(1 - ||f_a||_2 / ||f_b||_2)``; a group whose scales are all equal adds the constant 1.
    It is the expectation of `norm_ratio_loss` over pairs drawn until their scales differ.

    Args:
        features: un-normalised features (G, K, D).
        scales: content that each view keeps, any unit that orders the views of a group (G, K).
        eps: shortest length told apart from 0.

    Returns:
        The mean loss, in (0, e); float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        Ablation ``pair_sampling=all_pairs`` of arXiv 2205.12358's norm-ratio loss.
    """
    chex.assert_rank([features, scales], [3, 2])
    chex.assert_equal_shape_prefix([features, scales], 2)
    lengths = numerics.safe_norm(features, eps=eps)
    penalty = _norm_ratio_penalty(longer=lengths[:, :, None], shorter=lengths[:, None, :])
    ordered = scales[:, :, None] > scales[:, None, :]
    group = numerics.masked_mean(penalty, ordered, axis=(1, 2))
    return jnp.mean(jnp.where(jnp.any(ordered, axis=(1, 2)), group, 1))


def select_scale_pairs(
    draws: Int[Array, "groups tries 2"], scales: Float[Array, "groups views"]
) -> tuple[Int[Array, " groups"], Int[Array, " groups"]]:
    """Applies the redraw rule to pairs of views drawn beforehand.

    In each group the first drawn pair whose scales differ, or the last one if none does.

    Args:
        draws: ordered pairs of view indices in [0, K), in the order drawn (G, T, 2).
        scales: content that each view keeps, any unit that orders the views of a group (G, K).

    Returns:
        ``hi``, ``lo``: indices (G,) of the views with the larger and the smaller scale; where the
        scales are equal both are the first view of the pair.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2205.12358, pair sampling of the released loss (5 tries).
    """
    chex.assert_rank([draws, scales], [3, 2])
    chex.assert_equal_shape_prefix([draws, scales], 1)
    chex.assert_axis_dimension(draws, 2, 2)
    first, second = draws[..., 0], draws[..., 1]
    differs = jnp.take_along_axis(scales, first, 1) != jnp.take_along_axis(scales, second, 1)
    last = draws.shape[1] - 1
    chosen = jnp.where(jnp.any(differs, axis=1), jnp.argmax(differs, axis=1), last)
    first, second = _pick(first, chosen), _pick(second, chosen)
    scale_first, scale_second = _pick(scales, first), _pick(scales, second)
    hi = jnp.where(scale_first >= scale_second, first, second)
    lo = jnp.where(scale_first <= scale_second, first, second)
    return hi, lo


def sample_scale_pairs(
    key: PRNGKeyArray, scales: Float[Array, "groups views"], max_tries: int = 5
) -> tuple[Int[Array, " groups"], Int[Array, " groups"]]:
    """Draws one pair of views per group, redrawing while their scales are equal.

    Pairs are uniform on all K^2 ordered pairs, with replacement; after ``max_tries`` failed draws
    the last one is kept, and `norm_ratio_loss` makes it a constant.

    Args:
        key: JAX random key.
        scales: content that each view keeps, any unit that orders the views of a group (G, K).
        max_tries: number of pairs drawn per group at most, >= 1.

    Returns:
        ``hi``, ``lo``: view indices (G,) as from `select_scale_pairs`.

    Raises:
        AssertionError: if ``scales`` is not a matrix.

    Reference:
        arXiv 2205.12358, pair sampling of the released loss.
    """
    chex.assert_rank(scales, 2)
    groups, views = scales.shape
    return select_scale_pairs(jax.random.randint(key, (groups, max_tries, 2), 0, views), scales)


def select_extreme_pairs(
    scales: Float[Array, "groups views"],
) -> tuple[Int[Array, " groups"], Int[Array, " groups"]]:
    """Takes the views with the most and the least content of each group.

    Args:
        scales: content that each view keeps, any unit that orders the views of a group (G, K).

    Returns:
        ``hi``, ``lo``: view indices (G,), equal where all scales of a group are.

    Raises:
        AssertionError: if ``scales`` is not a matrix.

    Reference:
        Ablation ``pair_sampling=extremes`` of arXiv 2205.12358's norm-ratio loss.
    """
    chex.assert_rank(scales, 2)
    return jnp.argmax(scales, axis=1), jnp.argmin(scales, axis=1)


def _norm_ratio_penalty(*, longer: Array, shorter: Array) -> Array:
    """exp(1 - longer / shorter) of positive lengths."""
    return jnp.exp(1 - longer / shorter)


def _pick(values: Array, index: Array) -> Array:
    """One entry of each row."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
