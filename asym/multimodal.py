"""Multimodal fusion: each modality is relied on in inverse proportion to its variance.

Balancing how fast modalities learn is not the optimum.  Of unbiased predictions with independent
errors the best mixture weighs each by the inverse of its variance, so the gradients that enter the
encoders are re-weighted until the dependence on the modalities, ``d_0 / d_1``, has moved to the
ratio of their inverse variances, ``q_0 / q_1``.

Modalities are ordered: where they come as a sequence, all sequences and all vectors with an axis
``modalities`` keep that order.

Reference:
    Wei, Luo and Luo, "Improving multimodal learning via imbalanced learning", ICCV 2025,
    arXiv 2507.10203.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asym import numerics

# exp(50) is finite in float32, and tanh of it, or of it times any useful strength, is exactly 1.
_LARGEST_LOG_RATIO = 50.0
# Below it a modality counts as unused: the quotient by it must stay finite in float32.
_SMALLEST_DEPENDENCE = 1e-12


class ModalityAnalysis(NamedTuple):
    """What a batch tells about its modalities, all (n,) and without gradient.

    ``entropy`` in nats; ``entropy_ratio`` its share, bounded below; ``dependence`` (d) and
    ``inverse_variance`` (q), which sum to 1; ``coefficient`` (k) for `grad_scale`, sums to 1.
    """

    entropy: Float[Array, " modalities"]
    entropy_ratio: Float[Array, " modalities"]
    dependence: Float[Array, " modalities"]
    inverse_variance: Float[Array, " modalities"]
    coefficient: Float[Array, " modalities"]


class ArlLoss(NamedTuple):
    """The objective, and the unweighted cross-entropies that it is made of."""

    total: Float[Array, ""]
    fused: Float[Array, ""]
    unimodal: Float[Array, " modalities"]


def inverse_variance_weights(
    var: Float[Array, "*batch modalities"],
) -> Float[Array, "*batch modalities"]:
    """Weights of the mixture with the least variance, for independent errors.

    ``w_i = (1 / v_i) / sum_j (1 / v_j)``, evaluated as ``v_min / v_i`` so that no inverse
    overflows; the weights do not depend on ``v_min``, so no gradient passes it (stop-gradient).

    Args:
        var: variances of the modalities' predictions (..., n), >= 0.

    Returns:
        Weights (..., n), >= 0, summing to 1; modalities without variance share all of it.
        float32 for half-precision input.

    Raises:
        AssertionError: if ``var`` is a scalar.

    Reference:
        arXiv 2507.10203, bias-variance analysis: two modalities; n of them by the same argument.
    """
    chex.assert_shape(var, (..., None))
    smallest = jax.lax.stop_gradient(jnp.min(var, axis=-1, keepdims=True))
    relative = numerics.safe_divide(numerator=smallest, denominator=var, fallback=1.0)
    return relative / jnp.sum(relative, axis=-1, keepdims=True)


def correlated_weights(
    var: Float[Array, "*batch 2"], correlation: float | Float[Array, "..."]
) -> Float[Array, "*batch 2"]:
    """Weights of the mixture of two predictions with the least variance, for correlated errors.

    ``w_0 = (v_1 - c) / (v_0 + v_1 - 2 c)`` with ``c = rho sqrt(v_0 v_1)``, and ``w_1 = 1 - w_0``.
    With s the standard deviations this is evaluated as ``s_1 ((s_1 - s_0) + (1 - rho) s_0)`` over
    ``(s_1 - s_0)^2 + 2 (1 - rho) s_0 s_1``, which cancels nothing near rho = 1.

    Args:
        var: variances of the two predictions (..., 2), >= 0.
        correlation: rho in [-1, 1], broadcast against the batch.

    Returns:
        Weights (..., 2) summing to 1.  The worse prediction has a negative one when rho exceeds
        the ratio of the smaller to the larger deviation; equal weights when every mixture is as
        good.  float32 for half-precision input.

    Raises:
        AssertionError: if ``var`` does not end in an axis of 2.

    Reference:
        The term that arXiv 2507.10203 drops by taking the errors as uncorrelated.
    """
    chex.assert_shape(var, (..., 2))
    deviation = numerics.safe_sqrt(numerics.at_least_float32(var))
    largest = jax.lax.stop_gradient(jnp.max(deviation, axis=-1, keepdims=True))
    relative = deviation / jnp.where(largest > 0, largest, 1)
    own, other = relative, relative[..., ::-1]
    decorrelation = jnp.asarray(1 - correlation)[..., None]
    return numerics.safe_divide(
        numerator=other * ((other - own) + decorrelation * own),
        denominator=jnp.square(other - own) + 2 * decorrelation * own * other,
        fallback=0.5,
    )


def fused_variance(
    *,
    weights: Float[Array, "*#batch modalities"],
    var: Float[Array, "*#batch modalities"],
    correlation: float | Float[Array, "..."] = 0.0,
) -> Float[Array, "*#batch"]:
    """Variance of a mixture of predictions whose errors have the same correlation in every pair.

    ``sum_i w_i^2 v_i + rho sum_{i != j} w_i w_j sqrt(v_i v_j)``, which for independent errors and
    `inverse_variance_weights` is ``1 / sum_i (1 / v_i)``.

    Args:
        weights: weights of the mixture (..., n).
        var: variances of the predictions (..., n), >= 0.
        correlation: rho in [-1 / (n - 1), 1], broadcast against the batch.

    Returns:
        Variances (...); float32 for half-precision input.

    Raises:
        AssertionError: if the two have different numbers of modalities.

    Reference:
        arXiv 2507.10203, bias-variance analysis, with rho = 0.
    """
    chex.assert_equal_shape_suffix([weights, var], 1)
    part = numerics.at_least_float32(weights) * numerics.safe_sqrt(numerics.at_least_float32(var))
    independent = jnp.sum(jnp.square(part), axis=-1)
    return independent + correlation * (jnp.square(jnp.sum(part, axis=-1)) - independent)


def modality_dependence(
    logits: Sequence[Float[Array, "*batch classes"]],
) -> Float[Array, " modalities"]:
    """How much of the fused prediction each modality brings, by the size of its logits.

    ``d_m = D_m / sum_j D_j`` with ``D_m = sum_c mean_n |z_m[n, c]|``.

    Args:
        logits: unimodal logits, n arrays (..., C).

    Returns:
        Shares (n,), >= 0, summing to 1; equal ones if all logits are 0.  At least float32.

    Raises:
        AssertionError: if the logits have different shapes.

    Reference:
        arXiv 2507.10203, modality analysis, as in the released code.
    """
    size = jnp.mean(jnp.abs(_stacked(logits)), axis=-2).sum(axis=-1)
    return _share(size)


def prediction_entropy(
    logits: Float[Array, "*batch classes"], *, log_eps: float = 1e-16
) -> Float[Array, ""]:
    """Mean entropy in nats of a batch of predictions, which stands for their variance.

    ``mean_n -sum_c p_c log(p_c + eps)`` with ``p = softmax(z_n)``.

    Args:
        logits: logits (..., C).
        log_eps: added inside the logarithm, > 0 and at least 1e-37 in float32.

    Returns:
        Scalar in [0, log C]; at least float32.

    Raises:
        AssertionError: if ``logits`` is a scalar.

    Reference:
        arXiv 2507.10203, equation 17 takes each sample's entropy, the released code the batch's
        mean; the code is followed.
    """
    chex.assert_shape(logits, (..., None))
    probability = jax.nn.softmax(numerics.at_least_float32(logits), axis=-1)
    return jnp.mean(-jnp.sum(probability * jnp.log(probability + log_eps), axis=-1))


def inverse_entropy_ratio(
    entropy: Float[Array, "*batch modalities"], *, floor: float = 0.3
) -> Float[Array, "*batch modalities"]:
    """Inverse variances of the modalities in shares, by the entropy of their predictions.

    ``q_m = (1 / h_m) / sum_j (1 / h_j)`` with ``h_m = max(H_m / sum_j H_j, floor)``: the surer,
    the larger.  Where the bound acts the h sum to more than 1.

    Args:
        entropy: mean entropies (..., n), >= 0.
        floor: smallest share of the entropy, in [0, 1 / n] to tell the modalities apart at all;
            for two of them q stays in [floor / (1 + floor), 1 / (1 + floor)].

    Returns:
        Shares (..., n), >= 0, summing to 1; equal ones if all predictions are certain, where the
        released code divides 0 by 0.  At least float32.

    Raises:
        AssertionError: if ``entropy`` is a scalar.

    Reference:
        arXiv 2507.10203, equation 17, as in the released code.
    """
    return inverse_variance_weights(_bounded_share(entropy, floor))


def asymmetric_coefficients(
    *,
    dependence: Float[Array, "*batch modalities"],
    inverse_variance: Float[Array, "*batch modalities"],
    sharpness: float | Float[Array, ""] = 8.0,
) -> Float[Array, "*batch modalities"]:
    """Learning strengths that boost what is relied on less than its inverse variance warrants.

    Two modalities: ``k = softmax(T d_1 q_0, T d_0 q_1)``, so that ``k_0 > k_1`` exactly where
    ``d_0 / d_1 < q_0 / q_1``.  More: ``k = softmax(T q_m / d_m)``, of the same order.

    Args:
        dependence: shares d of the fused prediction (..., n), >= 0, n >= 2.
        inverse_variance: shares q of the inverse variance (..., n), >= 0.
        sharpness: the paper's T, >= 0; the larger, the further apart the strengths.

    Returns:
        Strengths (..., n), in [0, 1], summing to 1.  At least float32.

    Raises:
        AssertionError: if the shapes differ or there are fewer than two modalities.

    Reference:
        arXiv 2507.10203, asymmetric learning; the form for n > 2 is ours.  The released code
        computes the strengths but never applies them: the scale stays at 0.5 for both.
    """
    chex.assert_equal_shape([dependence, inverse_variance])
    modalities = dependence.shape[-1]
    chex.assert_scalar_in(modalities, 2, float("inf"))
    dependence = numerics.at_least_float32(dependence)
    if modalities == 2:
        warranted = inverse_variance * dependence[..., ::-1]
    else:
        warranted = inverse_variance / jnp.maximum(dependence, _SMALLEST_DEPENDENCE)
    return jax.nn.softmax(sharpness * warranted, axis=-1)


def modality_analysis(
    logits: Sequence[Float[Array, "*batch classes"]],
    *,
    sharpness: float | Float[Array, ""] = 8.0,
    entropy_floor: float = 0.3,
    log_eps: float = 1e-16,
) -> ModalityAnalysis:
    """Estimates dependence and inverse variance of a batch, and the learning strengths they give.

    `modality_dependence`, `prediction_entropy`, `inverse_entropy_ratio` and
    `asymmetric_coefficients` in a row, behind a stop-gradient.

    Args:
        logits: unimodal logits, n arrays (..., C), n >= 2.
        sharpness: the paper's T, >= 0.
        entropy_floor: smallest share of the entropy, in [0, 1 / n].
        log_eps: added inside the logarithm of the entropy, > 0.

    Returns:
        The estimates, each (n,); at least float32.

    Raises:
        AssertionError: if the shapes differ or there are fewer than two modalities.

    Reference:
        arXiv 2507.10203, modality analysis, on every training batch.
    """
    logits = [jax.lax.stop_gradient(each) for each in logits]
    entropy = jnp.stack([prediction_entropy(each, log_eps=log_eps) for each in logits])
    dependence = modality_dependence(logits)
    inverse_variance = inverse_entropy_ratio(entropy, floor=entropy_floor)
    return ModalityAnalysis(
        entropy=entropy,
        entropy_ratio=_bounded_share(entropy, entropy_floor),
        dependence=dependence,
        inverse_variance=inverse_variance,
        coefficient=asymmetric_coefficients(
            dependence=dependence, inverse_variance=inverse_variance, sharpness=sharpness
        ),
    )


def grad_scale(x: Float[Array, "*shape"], k: float | Float[Array, "..."]) -> Float[Array, "*shape"]:
    """The identity, whose backward pass multiplies the cotangent by ``1 + k``.

    ``y = x`` and ``dL/dx = (1 + k) dL/dy``: between an encoder and the head it scales what the
    encoder learns and leaves the head alone; the 1 keeps a suppressed modality learning.  The
    cotangent of ``k`` is 0.  Reverse mode only, like every function with its own backward pass.

    Args:
        x: features of any shape.
        k: strength, broadcastable to ``x``.

    Returns:
        ``x``, bit for bit.

    Raises:
        AssertionError: if ``k`` does not broadcast to ``x``.

    Reference:
        arXiv 2507.10203, asymmetric gradient with residual, ``g + k g``.
    """
    strength = numerics.at_least_float32(jnp.asarray(k))
    chex.assert_is_broadcastable(strength.shape, x.shape)
    return _scaled_identity(x, strength)


def arl_loss(
    *,
    fused: Float[Array, "*batch classes"],
    unimodal: Sequence[Float[Array, "*batch classes"]],
    labels: Int[Array, "*batch"],
    gamma: float | Float[Array, ""] = 4.0,
) -> ArlLoss:
    """Cross-entropy of the fused prediction plus that of each modality alone, against their bias.

    ``L = CE(z, y) + gamma sum_m CE(z_m, y)``, each a mean over the batch.

    Args:
        fused: logits of the fused prediction (..., C).
        unimodal: logits of each modality through the same head, n >= 1 arrays (..., C).
        labels: classes (...), in [0, C).
        gamma: weight of the unimodal losses, >= 0; 1 while warming up.

    Returns:
        The objective and its parts, ``unimodal`` being (n,).  At least float32.

    Raises:
        AssertionError: if the shapes differ.

    Reference:
        arXiv 2507.10203, unimodal bias regularisation; gamma 4 in the paper, 3 to 5 in the code.
    """
    losses = -jnp.mean(_label_log_probability(_stacked([fused, *unimodal]), labels), axis=-1)
    return ArlLoss(losses[0] + gamma * jnp.sum(losses[1:]), losses[0], losses[1:])


def ogm_ge_coefficients(
    logits: Sequence[Float[Array, "*batch classes"]],
    labels: Int[Array, "*batch"],
    *,
    alpha: float | Float[Array, ""] = 0.8,
) -> Float[Array, "2"]:
    """Factors that slow down the encoder of the modality that predicts better (a baseline).

    ``c_m = 1 - tanh(alpha r_m)`` if ``r_m > 1`` else 1, with r the ratio of the summed
    probabilities of the true classes, ``r_0 = sum_n p_0[n, y_n] / sum_n p_1[n, y_n] = 1 / r_1``.
    Formed from logarithms (log-sum-exp): the sums of confident errors vanish in float32.

    Args:
        logits: unimodal logits, two arrays (..., C).
        labels: classes (...), in [0, C).
        alpha: strength, >= 0.

    Returns:
        Factors (2,), in [0, 1], at most one of them below 1.  At least float32.

    Raises:
        AssertionError: if there are not two modalities or their shapes differ.

    Reference:
        Peng et al., "Balanced multimodal learning via on-the-fly gradient modulation", CVPR 2022.
    """
    stacked = _stacked(logits)
    chex.assert_axis_dimension(stacked, 0, 2)
    score = jax.nn.logsumexp(_label_log_probability(stacked, labels), axis=-1)
    log_ratio = score - score[::-1]
    strength = alpha * jnp.exp(jnp.minimum(log_ratio, _LARGEST_LOG_RATIO))
    return jnp.where(log_ratio > 0, 1 - jnp.tanh(strength), 1)


def clip_global_norm(
    gradients: chex.ArrayTree, max_norm: float | Float[Array, ""] = 40.0
) -> tuple[chex.ArrayTree, Float[Array, ""]]:
    """Gradients shortened to a largest joint length, and the length they had.

    ``g min(1, max_norm / (||g||_2 + 1e-6))``, where optax divides by the bare norm.

    Args:
        gradients: tree of arrays.
        max_norm: largest joint Euclidean length, > 0.

    Returns:
        The tree of the same shapes and dtypes, and the norm before; at least float32.

    Reference:
        arXiv 2507.10203, released code: 40, in PyTorch's form.
    """
    lengths = [numerics.safe_norm(leaf.ravel()) for leaf in jax.tree.leaves(gradients)]
    norm = numerics.safe_norm(jnp.stack(lengths))
    factor = jnp.minimum(max_norm / (norm + 1e-6), 1)
    return jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), gradients), norm


@jax.custom_vjp
def _scaled_identity(x: Array, strength: Array) -> Array:
    return x


def _scaled_identity_forward(x: Array, strength: Array) -> tuple[Array, Array]:
    return x, strength


def _scaled_identity_backward(strength: Array, cotangent: Array) -> tuple[Array, Array]:
    scaled = numerics.at_least_float32(cotangent) * (1 + strength)
    return scaled.astype(cotangent.dtype), jnp.zeros_like(strength)


_scaled_identity.defvjp(_scaled_identity_forward, _scaled_identity_backward)


def _stacked(logits: Sequence[Array]) -> Array:
    """Logits of n modalities as one array (n, N, C), the batch flattened."""
    chex.assert_equal_shape(list(logits))
    return jnp.stack(
        [numerics.at_least_float32(each).reshape(-1, each.shape[-1]) for each in logits]
    )


def _share(amount: Array) -> Array:
    """Non-negative amounts over their sum, equal shares of nothing."""
    chex.assert_shape(amount, (..., None))
    total = jnp.sum(numerics.at_least_float32(amount), axis=-1, keepdims=True)
    equal = 1 / amount.shape[-1]
    return numerics.safe_divide(numerator=amount, denominator=total, fallback=equal)


def _bounded_share(amount: Array, floor: float) -> Array:
    return jnp.maximum(_share(amount), floor)


def _label_log_probability(logits: Array, labels: Array) -> Array:
    """Log-probability of the true classes, (n, N) of logits (n, N, C) and labels with N entries."""
    index = jnp.broadcast_to(labels.ravel(), logits.shape[:-1])[..., None]
    return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), index, axis=-1)[..., 0]
