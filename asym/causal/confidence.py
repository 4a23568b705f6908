"""How sure the estimates are: the width of a reward, its coefficient, and tests for change."""

import math
from typing import Literal

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from asym import numerics
from asym.causal import linsem

# Where all residuals are alike the likelihood ratio has no bound; below it they count as this wide.
_SMALLEST_DEVIATION = 1e-12

Scalar = float | Float[Array, ""]
Instant = int | float | Num[Array, ""]


def column_error_variance(
    covariates: Float[Array, "node sample"],
    *,
    parent_mask: Bool[Array, " node"],
    sample_mask: Bool[Array, " sample"],
    noise_scale: Scalar = 1.0,
) -> Float[Array, ""]:
    """Largest variance of a column's weight error in any direction.

    ``lambda_max(sigma^2 (X_pa X_pa^T)^{-1})``.

    Args:
        covariates: X (N, S), samples of the column.
        parent_mask: its parents (N,).
        sample_mask: which samples there are (S,).
        noise_scale: standard deviation sigma of the column's noise, >= 0.

    Returns:
        The variance, 0 without parents; finite, if huge, where the samples leave a direction
        undetermined. float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, Theorem 1.
    """
    chex.assert_shape(covariates, (parent_mask.shape[0], sample_mask.shape[0]))
    used = parent_mask[:, None] & sample_mask
    kept = jnp.where(used, numerics.at_least_float32(covariates), 0)
    gram = kept @ kept.T
    # Nodes that are no parents get an eigenvalue that is never the smallest.
    gram = gram + jnp.diag(jnp.where(parent_mask, 0, jnp.trace(gram) + 1))
    eigenvalues = jnp.linalg.eigvalsh(gram)
    tiny = jnp.finfo(gram.dtype).eps * jnp.maximum(eigenvalues[-1], 1)
    variance = jnp.asarray(noise_scale) ** 2 / jnp.maximum(eigenvalues[0], tiny)
    return jnp.where(jnp.any(parent_mask), variance, 0)


def ucb_width(
    weights_hat: Float[Array, "node column"],
    *,
    noise_mean: Float[Array, " node"],
    error_variance: Float[Array, " column"],
    delta: Scalar = 0.05,
    form: Literal["code", "theorem"] = "code",
) -> Float[Array, ""]:
    """How far the estimated reward of an action may be from the true one.

    ``||C_hat[:, N]|| ||mu_hat|| sqrt(4 ln(2N / delta) sum_n f_n lambda_n)``, where ``f_n`` is
    ``sqrt(N_n (N_n + 2))`` with the column's number of parents N_n ("code"), or
    ``sqrt(N (N + 2))`` with the number of nodes ("theorem", which is never narrower).

    Args:
        weights_hat: estimated B_a (N, N).
        noise_mean: nu (N,).
        error_variance: lambda_n of the columns in force (N,), from `column_error_variance`.
        delta: probability with which the bound may fail, in (0, 1).
        form: which of the two.

    Returns:
        The width, >= 0; float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, Theorem 1 ("theorem", with the estimated mean in place of the true one)
        and the authors' code ("code").
    """
    nodes = noise_mean.shape[0]
    chex.assert_shape(weights_hat, (nodes, nodes))
    chex.assert_shape(error_variance, (nodes,))
    flow = linsem.flow_matrix(weights_hat)
    if form == "code":
        count = jnp.sum(weights_hat != 0, axis=0).astype(flow.dtype)
    else:
        count = jnp.full(nodes, nodes, flow.dtype)
    factor = numerics.safe_sqrt(count * (count + 2))
    mean = flow.T @ noise_mean
    spread = 4 * jnp.log(2 * nodes / jnp.asarray(delta)) * jnp.sum(factor * error_variance)
    lengths = numerics.safe_norm(flow[:, -1]) * numerics.safe_norm(mean)
    return lengths * numerics.safe_sqrt(spread)


def column_change_stat(
    residuals: Float[Array, "*columns window"], *, noise_scale: Float[Array, "*columns"]
) -> Float[Array, "*columns"]:
    """Log-likelihood ratio a sample: a column's residuals fitted freely, against the known noise.

    ``log(sigma / s) + mean((e / sigma)^2) / 2 - mean(((e - m) / s)^2) / 2``, with mean m and
    (biased) deviation s of the residuals e.

    Args:
        residuals: ``X_n - [B]_n^T X - nu_n`` over a window (..., W).
        noise_scale: standard deviation sigma (...), > 0.

    Returns:
        The statistic (...), >= 0 up to rounding; a change is declared where it is large.
        float32 for half-precision input.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        arXiv 2408.11240, change detection; the authors' code (window 20, threshold 2).
    """
    chex.assert_shape(residuals, (*noise_scale.shape, None))
    residuals = numerics.at_least_float32(residuals)
    everywhere = jnp.ones(residuals.shape, bool)
    centre = jnp.mean(residuals, axis=-1, keepdims=True)
    spread = numerics.safe_sqrt(numerics.masked_variance(residuals, everywhere, axis=-1))
    spread = jnp.maximum(spread, _SMALLEST_DEVIATION)
    known = jnp.mean(jnp.square(residuals / noise_scale[..., None]), axis=-1)
    fitted = jnp.mean(jnp.square((residuals - centre) / spread[..., None]), axis=-1)
    return jnp.log(noise_scale / spread) + 0.5 * known - 0.5 * fitted


def graph_change_stat(
    observations: Float[Array, "node window"],
    *,
    weights: Float[Array, "node column"],
    noise_mean: Float[Array, " node"],
    noise_covariance: Float[Array, "node column"],
) -> Float[Array, ""]:
    """Log-likelihood ratio a number: a window fitted freely, against the model of one action.

    ``(1 / (W N)) (log p(X; m_hat, S_hat) - log p(X; C^T nu, C^T Sigma C))`` of Gaussian densities.

    Args:
        observations: X under one action (N, W), W > N.
        weights: B_a of that action (N, N).
        noise_mean: nu (N,).
        noise_covariance: Sigma (N, N), positive definite.

    Returns:
        The statistic; the empirical covariance divides by W - 1. float32 for half precision.

    Raises:
        AssertionError: if the shapes disagree.

    Reference:
        The authors' code, change detection of the GOLEM baseline (window 20, threshold 20).
    """
    nodes, window = observations.shape
    chex.assert_shape([weights, noise_covariance], (nodes, nodes))
    observations = numerics.at_least_float32(observations)
    flow = linsem.flow_matrix(weights)
    centre = jnp.mean(observations, axis=1)
    apart = observations - centre[:, None]

    def parts(mean: Array, covariance: Array) -> Array:
        away = observations - mean[:, None]
        quadratic = jnp.sum(away * jnp.linalg.solve(covariance, away))
        return window * jnp.linalg.slogdet(covariance)[1] / 2 + quadratic / 2

    known = parts(flow.T @ noise_mean, flow.T @ noise_covariance @ flow)
    fitted = parts(centre, apart @ apart.T / (window - 1))
    return (known - fitted) / (window * nodes)


def cosine_anneal(*, time: Instant, start: Instant, horizon: Instant) -> Float[Array, ""]:
    """Half a cosine from 1 at the start to 0 at the horizon.

    ``(1 + cos(pi (t - t_0) / (T - t_0))) / 2``.

    Args:
        time: t, in [t_0, T].
        start: t_0 <= T; the result is 0 where they are equal.
        horizon: T.

    Returns:
        The factor in [0, 1].

    Reference:
        arXiv 2408.11240, authors' code: the coefficient of the width.
    """
    elapsed = numerics.at_least_float32(jnp.asarray(time) - jnp.asarray(start))
    length = jnp.asarray(horizon) - jnp.asarray(start)
    share = numerics.safe_divide(numerator=elapsed, denominator=length, fallback=1.0)
    return (1 + jnp.cos(math.pi * share)) / 2
