"""Comparing whole representations by the kernels of their points.

A kernel ``K_ij = <z_i, z_j>`` tells the geometry of n points and forgets their coordinates, so that
two representations of different dimension can be compared.

Reference:
    Kornblith et al., "Similarity of neural network representations revisited", ICML 2019 (CKA);
    Alleman, Lindsey and Fusi, "Task structure and nonlinearity jointly determine learned
    representational geometry", ICLR 2024, arXiv 2401.13558 (their use here).
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from asym import numerics


def center_kernel(kernel: Num[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """The kernel of the same points with their mean moved to the origin.

    ``Kc_ij = K_ij - mean_j K_ij - mean_i K_ij + mean K``.

    Args:
        kernel: symmetric (..., n, n).

    Returns:
        Centred kernel (..., n, n), all of whose rows and columns sum to 0; float32 for
        half-precision input.

    Raises:
        AssertionError: if the last two axes differ.

    Reference:
        arXiv 2401.13558, kernel alignment.
    """
    chex.assert_equal(kernel.shape[-1], kernel.shape[-2])
    kernel = numerics.at_least_float32(kernel)
    # One axis after the other: each subtraction sees numbers that are already small.
    kernel = kernel - jnp.mean(kernel, axis=-1, keepdims=True)
    return kernel - jnp.mean(kernel, axis=-2, keepdims=True)


def cka(
    first: Num[Array, "*#batch n n"], second: Num[Array, "*#batch n n"], *, eps: float = 1e-12
) -> Float[Array, "*#batch"]:
    """Centred kernel alignment: the cosine between two centred kernels.

    ``CKA = <K1c, K2c> / (|K1c| |K2c|)`` in the Frobenius norm; symmetric in its arguments,
    unchanged by rotation, translation and isotropic scaling of the points.

    Args:
        first: kernel of n points (..., n, n).
        second: kernel of the same points in another representation (..., n, n).
        eps: norms below count as eps, so that a constant kernel is aligned with nothing.

    Returns:
        Alignment (...), in [0, 1] for kernels without negative eigenvalues.

    Raises:
        AssertionError: if the kernels differ in size.

    Reference:
        arXiv 2401.13558, input and target alignment; the authors divide by 1e-12 where a norm is 0.
    """
    chex.assert_equal_shape_suffix([first, second], 2)
    return _cosine(_flat(center_kernel(first)), _flat(center_kernel(second)), eps)


def linear_cka(
    first: Num[Array, "n d"], second: Num[Array, "n e"], *, eps: float = 1e-12
) -> Float[Array, ""]:
    """CKA of the linear kernels of two representations, by whichever product is smaller.

    ``|X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F)`` with centred columns, which equals
    ``CKA(X X^T, Y Y^T)``.

    Args:
        first: n points in d dimensions (n, d).
        second: the same points in e dimensions (n, e).
        eps: norms below count as eps.

    Returns:
        Alignment in [0, 1].

    Raises:
        AssertionError: if the numbers of points differ.

    Reference:
        Kornblith et al. 2019, section 3.
    """
    chex.assert_equal_shape_prefix([first, second], 1)
    x, y = (numerics.at_least_float32(z) for z in (first, second))
    x, y = (z - jnp.mean(z, axis=0) for z in (x, y))
    # Unit points: a product of four features must not overflow.
    x, y = (z / numerics.safe_norm(z.ravel(), eps=eps) for z in (x, y))
    if x.shape[0] <= max(x.shape[1], y.shape[1]):
        return _cosine(_flat(_product(x, x.T)), _flat(_product(y, y.T)), eps)
    cross = jnp.sum(jnp.square(_product(x.T, y)))
    norms = [numerics.safe_norm(_flat(_product(z.T, z)), eps=eps) for z in (x, y)]
    return cross / (norms[0] * norms[1])


def unbiased_hsic(
    first: Num[Array, "*#batch n n"], second: Num[Array, "*#batch n n"]
) -> Float[Array, "*#batch"]:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion.

    With zeroed diagonals ``[sum K∘L + (sum K)(sum L) / ((n-1)(n-2)) - 2 sum(K L) / (n-2)]
    / (n (n-3))``.

    Args:
        first: kernel K of n >= 4 points (..., n, n).
        second: kernel L of the same points (..., n, n).

    Returns:
        Estimates (...), negative where the points are less dependent than by chance.

    Raises:
        AssertionError: if the kernels differ in size or have less than 4 points.

    Reference:
        Song et al., "Feature selection via dependence maximization", JMLR 2012, equation 5.
    """
    chex.assert_equal_shape_suffix([first, second], 2)
    chex.assert_axis_dimension_gt(first, -1, 3)
    n = first.shape[-1]
    off_diagonal = 1 - jnp.eye(n)
    k, x = (numerics.at_least_float32(z) * off_diagonal for z in (first, second))
    totals = jnp.sum(k, axis=(-2, -1)) * jnp.sum(x, axis=(-2, -1)) / ((n - 1) * (n - 2))
    # The sum over a matrix product needs only the sums of rows and columns.
    chained = jnp.sum(jnp.sum(k, axis=-2) * jnp.sum(x, axis=-1), axis=-1)
    return (jnp.sum(k * x, axis=(-2, -1)) + totals - 2 * chained / (n - 2)) / (n * (n - 3))


def unbiased_cka(
    first: Num[Array, "*#batch n n"], second: Num[Array, "*#batch n n"]
) -> Float[Array, "*#batch"]:
    """CKA with the unbiased independence criterion in place of the inner product.

    ``hsic(K, L) / sqrt(hsic(K, K) hsic(L, L))``.

    Args:
        first: kernel K of n >= 4 points (..., n, n).
        second: kernel L of the same points (..., n, n).

    Returns:
        Alignment (...); 0 where one of the kernels is not dependent on itself.

    Raises:
        AssertionError: if the kernels differ in size or have less than 4 points.

    Reference:
        arXiv 2401.13558, optional measure; the authors divide without a guard.
    """
    own = unbiased_hsic(first, first), unbiased_hsic(second, second)
    product = numerics.safe_sqrt(own[0]) * numerics.safe_sqrt(own[1])
    return numerics.safe_divide(numerator=unbiased_hsic(first, second), denominator=product)


def kernel_participation_ratio(kernel: Num[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """Effective number of dimensions that points with this kernel fill.

    ``(tr K)^2 / |K|_F^2``: r for r equal eigenvalues.  Centre the kernel first to measure the
    spread around the mean.

    Args:
        kernel: without negative eigenvalues (..., n, n).

    Returns:
        Dimensions (...), in [1, n]; 0 for the zero kernel.

    Raises:
        AssertionError: if the last two axes differ.

    Reference:
        arXiv 2401.13558, dimensionality.
    """
    chex.assert_equal(kernel.shape[-1], kernel.shape[-2])
    kernel = numerics.at_least_float32(kernel)
    # The ratio is taken before squaring, which would overflow.
    trace = jnp.trace(kernel, axis1=-2, axis2=-1)
    norm = numerics.safe_norm(_flat(kernel))
    return jnp.square(numerics.safe_divide(numerator=trace, denominator=norm))


def participation_ratio(
    points: Num[Array, "features n"], *, center: bool = True
) -> Float[Array, ""]:
    """Effective number of dimensions that points fill.

    ``(tr C)^2 / tr(C^2)`` with ``C = X X^T`` over the points.

    Args:
        points: one column a point (f, n).
        center: whether the mean point is subtracted first.

    Returns:
        Dimensions, in [1, min(f, n)]; 0 if all points are equal (or zero, not centred).

    Raises:
        AssertionError: if ``points`` is not a matrix.

    Reference:
        arXiv 2401.13558, dimensionality.
    """
    chex.assert_rank(points, 2)
    points = numerics.at_least_float32(points)
    if center:
        points = points - jnp.mean(points, axis=1, keepdims=True)
    # C and the Gram matrix have the same eigenvalues but for zeros.
    gram = _product(points, points.T) if points.shape[0] < points.shape[1] else _gram(points)
    return kernel_participation_ratio(gram)


def kernel_to_sqdist(kernel: Num[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """Squared distances of points with this kernel.

    ``D_ij = K_ii + K_jj - 2 K_ij``.

    Args:
        kernel: symmetric (..., n, n).

    Returns:
        Squared distances (..., n, n), exactly 0 on the diagonal.

    Raises:
        AssertionError: if the last two axes differ.

    Reference:
        arXiv 2401.13558, the authors' ``dot2dist``.
    """
    chex.assert_equal(kernel.shape[-1], kernel.shape[-2])
    kernel = numerics.at_least_float32(kernel)
    own = jnp.diagonal(kernel, axis1=-2, axis2=-1)
    return own[..., :, None] + own[..., None, :] - 2 * kernel


def _gram(points: Array) -> Array:
    return _product(points.T, points)


def _product(left: Array, right: Array) -> Array:
    # Full precision: the default of some accelerators keeps 10 bits.
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _flat(kernel: Array) -> Array:
    return kernel.reshape(*kernel.shape[:-2], -1)


def _cosine(first: Array, second: Array, eps: float) -> Array:
    first, second = (numerics.normalize(z, eps=eps) for z in (first, second))
    return jnp.sum(first * second, axis=-1)
