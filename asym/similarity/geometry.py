"""What a linear readout can make of a representation: parallelism, generalisation, shattering.

Points carry a condition, and a dichotomy parts the conditions in two equal halves.  A
representation is *abstract* for a dichotomy if what separates the halves is the same everywhere.

Reference:
    Bernardi et al., "The geometry of abstraction in the hippocampus and prefrontal cortex", Cell
    2020; Alleman, Lindsey and Fusi, arXiv 2401.13558 (their use here).
"""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Num

from asym import numerics
from asym.similarity import kernels

_MOST_EXHAUSTIVE = 4
_NEWTON_STEPS = 40


def parallelism_score(
    kernel: Num[Array, "conditions conditions"],
    labels: Num[Array, " conditions"],
    *,
    pairing: Literal["assignment", "exhaustive"] = "assignment",
) -> Float[Array, ""]:
    """How parallel the vectors are that lead from one half of a dichotomy to the other.

    Each positive condition is paired with one negative one, ``v_i = z_i+ - z_pi(i)-``; the score is
    the mean cosine of distinct vectors, for the best pairing (``exhaustive``) or for that of least
    total squared distance (``assignment``).  Distances and cosines are read from the kernel,
    ``<z_i - z_j, z_k - z_l> = K_ik - K_il - K_jk + K_jl``.

    Args:
        kernel: inner products of the conditions' means (P, P), P even and >= 4.
        labels: a balanced dichotomy (P,), of which the larger value is positive.
        pairing: ``exhaustive`` tries all pairings, for at most 4 pairs.

    Returns:
        Score in [-1, 1]; 1 for a factorised cube.

    Raises:
        AssertionError: if the shapes do not agree.
        ValueError: if P is odd or below 4, ``exhaustive`` would try too many, or ``pairing`` is
            neither of the two.

    Reference:
        arXiv 2401.13558, parallelism score; the authors' fast version is ``assignment``.
    """
    chex.assert_shape(kernel, (labels.shape[0],) * 2)
    count, odd = divmod(labels.shape[0], 2)
    if odd or count < 2:
        raise ValueError(f"a dichotomy of {labels.shape[0]} conditions has no two pairs")
    kernel = numerics.at_least_float32(kernel)
    order = jnp.argsort(labels, stable=True)
    negative, positive = order[:count], order[count:]
    if pairing == "assignment":
        costs = kernels.kernel_to_sqdist(kernel)[positive][:, negative]
        rows, columns = optax.assignment.hungarian_algorithm(costs)
        return _mean_cosine(kernel, positive[rows], negative[columns])
    if pairing == "exhaustive":
        if count > _MOST_EXHAUSTIVE:
            raise ValueError(f"exhaustive pairing is for {_MOST_EXHAUSTIVE} pairs, not {count}")
        pairings = negative[jnp.array(_permutations(tuple(range(count))))]
        score = jax.vmap(lambda chosen: _mean_cosine(kernel, positive, chosen))
        return jnp.max(score(pairings))
    raise ValueError(f"pairing must be 'assignment' or 'exhaustive', not {pairing!r}")


def squared_hinge_scores(
    kernel: Float[Array, "n n"],
    signs: Num[Array, " n"],
    training: Bool[Array, " n"],
    *,
    cost: float = 1.0,
) -> Float[Array, " n"]:
    """Decision values of the linear classifier with the squared hinge loss, for all points.

    Minimises ``|w|^2 / 2 + bias^2 / 2 + C sum_i max(0, 1 - s_i (w.z_i + bias))^2`` over the
    training points.  Newton's method in the dual coefficients: with the active set A the minimum
    is ``(K_AA + 1 + I / 2C) alpha_A = s_A``; a step is halved while a shorter one is better.

    Args:
        kernel: inner products of all points (n, n).
        signs: -1 or 1 (n,); those of points that are not trained on do not matter.
        training: which points to train on (n,).
        cost: C > 0.

    Returns:
        ``w.z + bias`` (n,); float32 for half-precision input.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2401.13558: scikit-learn's LinearSVC, whose bias is regularised too.
    """
    chex.assert_shape(kernel, (signs.shape[0],) * 2)
    chex.assert_equal_shape([signs, training])
    gram = numerics.at_least_float32(kernel) + 1  # the bias is a feature that is always 1
    signs = signs.astype(gram.dtype)
    identity = jnp.eye(len(signs), dtype=gram.dtype)
    lengths = jnp.exp2(-jnp.arange(10, dtype=gram.dtype))

    class Search(NamedTuple):
        alpha: Array
        scores: Array
        steps: Array
        moving: Array

    def objective(alpha: Array, scores: Array) -> Array:
        slack = jnp.where(training, jnp.maximum(0, 1 - signs * scores), 0)
        return 0.5 * jnp.sum(alpha * scores, axis=-1) + cost * jnp.sum(slack**2, axis=-1)

    def improve(at: Search) -> Search:
        active = (training & (signs * at.scores < 1)).astype(gram.dtype)
        system = active[:, None] * gram * active + identity / (2 * cost)
        factor = jax.scipy.linalg.cho_factor(system)
        change = active * jax.scipy.linalg.cho_solve(factor, active * signs) - at.alpha
        alphas = at.alpha + lengths[:, None] * change
        scores = at.scores + lengths[:, None] * (gram @ change)
        values = objective(alphas, scores)
        best = jnp.argmin(values)
        # A whole step that keeps the active set has reached the minimum.
        still = jnp.all((training & (signs * scores[best] < 1)) == (active > 0)) & (best == 0)
        better = values[best] < objective(at.alpha, at.scores)
        return Search(
            jnp.where(better, alphas[best], at.alpha),
            jnp.where(better, scores[best], at.scores),
            at.steps + 1,
            better & ~still,
        )

    zeros = jnp.zeros_like(signs)
    first = Search(zeros, zeros, jnp.int32(0), jnp.bool_(True))
    return jax.lax.while_loop(lambda at: at.moving & (at.steps < _NEWTON_STEPS), improve, first)[1]


def ccgp(
    points: Num[Array, "features n"],
    condition: Int[Array, " n"],
    labels: Num[Array, " n"],
    splits: Int[Array, "splits trained"],
    *,
    cost: float = 1.0,
) -> Float[Array, " splits"]:
    """Cross-condition generalisation: trained on some conditions, tested on the others.

    Args:
        points: one column a noisy point (f, n).
        condition: of each point (n,).
        labels: of each point, the larger value positive (n,).
        splits: the conditions that are trained on, a row a split (S, m).
        cost: C of the classifier, > 0.

    Returns:
        Accuracy on the conditions left out (S,); its mean is the CCGP.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        arXiv 2401.13558, CCGP; the classifier is `squared_hinge_scores`.
    """
    chex.assert_rank([points, condition, labels, splits], [2, 1, 1, 2])
    chex.assert_equal_shape([condition, labels])
    kernel = _gram(points)
    positive = labels == jnp.max(labels)
    signs = jnp.where(positive, 1.0, -1.0).astype(kernel.dtype)

    def one(trained: Array) -> Array:
        training = jnp.any(condition[:, None] == trained, axis=1)
        scores = squared_hinge_scores(kernel, signs, training, cost=cost)
        return numerics.masked_mean(((scores > 0) == positive).astype(kernel.dtype), ~training)

    return jax.vmap(one)(splits)


def shattering_dimension(
    points: Num[Array, "features n"],
    condition: Int[Array, " n"],
    dichotomies: Num[Array, "dichotomies conditions"],
    training: Bool[Array, " n"],
    *,
    cost: float = 1.0,
) -> Float[Array, " dichotomies"]:
    """Accuracy of a linear decoder of each dichotomy of the conditions, on points held out.

    Args:
        points: one column a noisy point (f, n).
        condition: of each point, in [0, P) (n,).
        dichotomies: 0 or 1 for each condition, a row a dichotomy (S, P).
        training: the points to train on, the others are tested (n,).
        cost: C of the classifier, > 0.

    Returns:
        Accuracies (S,); their mean over all balanced dichotomies is the shattering dimension.

    Raises:
        AssertionError: if the shapes do not agree.

    Reference:
        Bernardi et al. 2020; arXiv 2401.13558, decoding of dichotomies that were not trained.
    """
    chex.assert_rank([points, condition, dichotomies, training], [2, 1, 2, 1])
    chex.assert_equal_shape([condition, training])
    kernel = _gram(points)

    def one(dichotomy: Array) -> Array:
        positive = dichotomy[condition] > 0
        signs = jnp.where(positive, 1.0, -1.0).astype(kernel.dtype)
        scores = squared_hinge_scores(kernel, signs, training, cost=cost)
        return numerics.masked_mean(((scores > 0) == positive).astype(kernel.dtype), ~training)

    return jax.vmap(one)(dichotomies)


def _mean_cosine(kernel: Array, positive: Array, negative: Array) -> Array:
    """Mean cosine between distinct coding vectors, from the kernel of the conditions."""

    def part(first: Array, second: Array) -> Array:
        return kernel[first][:, second]

    products = part(positive, positive) + part(negative, negative)
    products = products - part(positive, negative) - part(positive, negative).T
    lengths = numerics.safe_sqrt(jnp.diagonal(products))
    cosines = numerics.safe_divide(numerator=products, denominator=jnp.outer(lengths, lengths))
    return numerics.masked_mean(cosines, 1 - jnp.eye(len(lengths)))


def _gram(points: Array) -> Array:
    points = numerics.at_least_float32(points)
    return jnp.matmul(points.T, points, precision=jax.lax.Precision.HIGHEST)


def _permutations(items: tuple[int, ...]) -> list[tuple[int, ...]]:
    if len(items) <= 1:
        return [items]
    return [
        (first, *rest)
        for place, first in enumerate(items)
        for rest in _permutations(items[:place] + items[place + 1 :])
    ]
