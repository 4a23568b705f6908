"""Tasks whose input geometry agrees with the target geometry to a prescribed degree.

P = 2^b conditions, one for each word of b bits, are labelled by parities of subsets of the bits.
In +-1 form these dichotomies are orthogonal and balanced, so a kernel that is diagonal in them has
an alignment with the targets that can be written down.

Reference:
    Alleman, Lindsey and Fusi, "Task structure and nonlinearity jointly determine learned
    representational geometry", ICLR 2024, arXiv 2401.13558.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from asym import numerics
from asym.similarity import kernels

Scalar = float | Num[Array, ""]


class AlignedTask(NamedTuple):
    """A task on P = 2^b conditions with N = P - 1 orthogonal components.

    Attributes:
        dichotomies: all parities, 0 or 1 (P, N).
        spectrum: share of the input's variance along each (N,).
        inputs: means of the conditions (P, N).
        targets: the first k dichotomies (P, k).
    """

    dichotomies: Int[Array, "conditions components"]
    spectrum: Float[Array, " components"]
    inputs: Float[Array, "conditions components"]
    targets: Int[Array, "conditions outputs"]


def hadamard_dichotomies(num_bits: int) -> Int[Array, "conditions components"]:
    """The parity of every non-empty subset of the bits, for every word of bits.

    ``H[i, j] = (number of common ones of i and w_j) mod 2``; condition i is the word with bits
    ``(i >> n) & 1``.  The subsets w_j are ordered by size, then by value: the single bits first,
    then the pairs {0,1}, {0,2}, {1,2}, {0,3}, ..., then the triples.

    Args:
        num_bits: b >= 1.

    Returns:
        0 or 1 (2^b, 2^b - 1); the columns of ``2 H - 1`` are orthogonal and sum to 0.

    Raises:
        ValueError: if there is no bit.

    Reference:
        arXiv 2401.13558, appendix on the Hadamard tasks.
    """
    if num_bits < 1:
        raise ValueError(f"at least one bit is needed, not {num_bits}")
    words = range(2**num_bits)
    subsets = sorted(words[1:], key=lambda word: (word.bit_count(), word))
    return jnp.array([[(i & subset).bit_count() % 2 for subset in subsets] for i in words])


def largest_alignment(num_components: int, num_targets: int) -> float:
    """The alignment of targets with inputs of full rank, above which inputs would lose variance.

    ``c_max = sqrt(k / N)``, reached by a flat spectrum.

    Args:
        num_components: N.
        num_targets: k, 1 <= k <= N.

    Returns:
        The largest alignment of the paper's grid, in (0, 1].

    Raises:
        ValueError: if k is out of range.

    Reference:
        arXiv 2401.13558, appendix on the Hadamard tasks.
    """
    _check_targets(num_components, num_targets)
    return math.sqrt(num_targets / num_components)


def aligned_spectrum(
    num_components: int, num_targets: int, alignment: Scalar
) -> Float[Array, " components"]:
    """Variances along orthogonal dichotomies that give a prescribed alignment with the first k.

    ``pi_j = a`` for j <= k and b otherwise, with ``k a + (N - k) b = 1`` and
    ``b / a = sqrt(k (1 - c^2) / (c^2 (N - k)))``, written without dividing by c:
    ``a = c / (k c + r)``, ``b = (r / (N - k)) / (k c + r)``, ``r = sqrt(k (N - k) (1 - c^2))``.

    Args:
        num_components: N.
        num_targets: k, 1 <= k <= N.
        alignment: c in [0, 1]; at 0 the inputs hold nothing of the targets, at 1 nothing else.
            With k = N the spectrum is flat and only c = 1 can be had.

    Returns:
        Shares (N,), >= 0, that sum to 1.

    Raises:
        ValueError: if k is out of range.

    Reference:
        arXiv 2401.13558, appendix on the Hadamard tasks at scale 0; the authors solve for the root
        numerically and round it to 6 digits.
    """
    _check_targets(num_components, num_targets)
    c = numerics.at_least_float32(jnp.asarray(alignment))
    others = num_components - num_targets
    if not others:
        return jnp.full(num_components, 1 / num_components, c.dtype)
    rest = numerics.safe_sqrt(num_targets * others * (1 - jnp.square(c)))
    total = num_targets * c + rest
    is_target = jnp.arange(num_components) < num_targets
    return jnp.where(is_target, c / total, rest / (others * total))


def spectrum_alignment(
    spectrum: Num[Array, "*batch components"], num_targets: int
) -> Float[Array, "*batch"]:
    """Alignment of inputs with this spectrum and the first k dichotomies.

    ``CKA(K_x, K_y) = sum_{j <= k} pi_j / (sqrt(k) |pi|_2)``.

    Args:
        spectrum: variances along orthogonal dichotomies (..., N), >= 0.
        num_targets: k, 1 <= k <= N.

    Returns:
        Alignment (...), in [0, 1].

    Raises:
        ValueError: if k is out of range.

    Reference:
        arXiv 2401.13558, appendix on the Hadamard tasks.
    """
    _check_targets(spectrum.shape[-1], num_targets)
    share = jnp.sum(numerics.normalize(spectrum)[..., :num_targets], axis=-1)
    return share / math.sqrt(num_targets)


def aligned_inputs(
    num_bits: int,
    num_targets: int,
    alignment: Scalar = 0.0,
    *,
    spectrum: Num[Array, " components"] | None = None,
) -> AlignedTask:
    """Condition means with ``CKA(K_x, K_y) = c``.

    ``X = (2 H - 1) diag(sqrt(pi))``, ``Y = H[:, :k]``.

    Args:
        num_bits: b >= 1.
        num_targets: k, 1 <= k <= 2^b - 1.
        alignment: c in [0, 1], for the closed form of `aligned_spectrum`.
        spectrum: used instead of it, for instance from `random_aligned_spectrum`.

    Returns:
        The task.

    Raises:
        ValueError: if k is out of range.

    Reference:
        arXiv 2401.13558, appendix on the Hadamard tasks.
    """
    dichotomies = hadamard_dichotomies(num_bits)
    if spectrum is None:
        spectrum = aligned_spectrum(dichotomies.shape[1], num_targets, alignment)
    spectrum = numerics.at_least_float32(spectrum)
    inputs = (2 * dichotomies - 1) * numerics.safe_sqrt(spectrum)
    return AlignedTask(dichotomies, spectrum, inputs, dichotomies[:, :num_targets])


def random_aligned_spectrum(
    key: PRNGKeyArray, num_components: int, num_targets: int, alignment: Scalar, *, scale: Scalar
) -> Float[Array, " components"]:
    """A random spectrum with a prescribed alignment.

    Draws ``u ~ Dirichlet(1 / scale)`` and moves it straight towards less aligned spectra
    (a Dirichlet draw on the other components) or towards the targets themselves
    (``1_targets / k``), until its alignment is c.

    Args:
        key: JAX random key.
        num_components: N.
        num_targets: k, 1 <= k < N.
        alignment: c in [0, 1].
        scale: spread of the draw, > 0; small ones give nearly flat spectra.

    Returns:
        Shares (N,), >= 0, that sum to 1.

    Raises:
        ValueError: if k is out of range or leaves no other component.

    Reference:
        arXiv 2401.13558, appendix on the random tasks.
    """
    _check_targets(num_components, num_targets)
    if num_targets == num_components:
        raise ValueError("all components are targets: there is nothing to move to")
    first, second = jax.random.split(key)
    start = jax.random.dirichlet(first, jnp.full(num_components, 1 / scale))
    others = jax.random.dirichlet(second, jnp.full(num_components - num_targets, 1 / scale))
    target = (jnp.arange(num_components) < num_targets) / num_targets
    away = jnp.concatenate([jnp.zeros(num_targets), others])
    too_much = spectrum_alignment(start, num_targets) >= alignment
    return _at_cosine(start, jnp.where(too_much, away, target), target, alignment)


def random_aligned_kernel(
    key: PRNGKeyArray, targets: Num[Array, "n outputs"], alignment: Scalar, *, max_rank: int
) -> Float[Array, "n n"]:
    """A random centred kernel with a prescribed alignment with the targets' kernel.

    Random orthonormal eigenvectors in the complement of the ones vector with eigenvalues
    ``n Dirichlet(1)``, moved straight to the part of it that is orthogonal to the targets, or to
    the targets' own kernel, until ``<K, K_y>^2 = c^2 |K|^2 |K_y|^2``.  Neither end has a negative
    eigenvalue, and so neither has what lies between.

    Args:
        key: JAX random key.
        targets: labels of the n points, of any scale (n, k), with k + 1 < n.
        alignment: c in [0, 1].
        max_rank: largest rank of the random kernel, in [1, n - 1]; the result may have k more.

    Returns:
        Kernel (n, n) of trace n.

    Raises:
        ValueError: if the rank is out of range or the targets leave no direction.

    Reference:
        arXiv 2401.13558, appendix on random kernels.
    """
    n, num_targets = targets.shape
    if not 1 <= max_rank <= n - 1:
        raise ValueError(f"max_rank must lie in [1, {n - 1}], not {max_rank}")
    if num_targets + 1 >= n:
        raise ValueError(f"{num_targets} targets leave no direction among {n} points")
    first, second = jax.random.split(key)
    labels = numerics.at_least_float32(targets)
    labels = labels - jnp.mean(labels, axis=0)
    wanted = n * _unit_trace(labels @ labels.T)
    # QR keeps the span of the leading columns: the others are orthogonal to the ones vector.
    drawn = jax.random.normal(first, (n, max_rank), labels.dtype)
    vectors = jnp.linalg.qr(jnp.concatenate([jnp.ones((n, 1)), drawn], axis=1))[0][:, 1:]
    values = n * jax.random.dirichlet(second, jnp.ones(max_rank, labels.dtype))
    start = (vectors * values) @ vectors.T
    basis = jnp.linalg.qr(labels)[0]
    others = jnp.eye(n) - basis @ basis.T
    away = n * _unit_trace(others @ start @ others)
    too_much = kernels.cka(start, wanted) >= alignment
    end = jnp.where(too_much, away, wanted)
    return _at_cosine(start.ravel(), end.ravel(), wanted.ravel(), alignment).reshape(n, n)


def nudged_xor(epsilon: Scalar, basis: Float[Array, "dim 3"]) -> Float[Array, "4 dim"]:
    """Four conditions from not linearly separable by their parity to separable.

    ``x = m_1 b_1 + m_2 b_2 - eps m_3 b_1 b_2`` for the bits (1,1), (-1,1), (1,-1), (-1,-1).

    Args:
        epsilon: separability in [0, 1]; at 0 no plane tells the parities apart.
        basis: the directions m_1, m_2, m_3 (D, 3).

    Returns:
        Means of the conditions (4, D).

    Raises:
        AssertionError: if there are not three directions.

    Reference:
        arXiv 2401.13558, the separable XOR of the authors' code.
    """
    chex.assert_shape(basis, (None, 3))
    bits = jnp.array([[1, 1], [-1, 1], [1, -1], [-1, -1]], basis.dtype)
    parity = -epsilon * bits[:, :1] * bits[:, 1:]
    coordinates = jnp.concatenate([bits, parity.astype(basis.dtype)], axis=1)
    return jnp.matmul(coordinates, basis.T, precision=jax.lax.Precision.HIGHEST)


def alignment_coordinates(
    *,
    input_alignment: Float[Array, "*#batch"],
    target_alignment: Float[Array, "*#batch"],
    alignment: float | Num[Array, "*#batch"],
) -> Float[Array, "*batch 2"]:
    """Where a kernel lies in the plane of the input and target kernels, as unit vectors.

    The input kernel is drawn at the angle ``p = (pi/2 - arccos c) / 2`` and the target kernel at
    ``pi/2 - p``; the coordinates are the inverse of this basis applied to the two alignments.  The
    bound ``arccos a_x + arccos a_y >= arccos c`` becomes the unit circle.

    Args:
        input_alignment: ``a_x = CKA(K_z, K_x)`` (...).
        target_alignment: ``a_y = CKA(K_z, K_y)`` (...).
        alignment: ``c = CKA(K_x, K_y)``, in [0, 1).

    Returns:
        Points (..., 2) of length at most 1, equal to 1 for kernels in the plane; large x means
        input geometry, large y target geometry.

    Reference:
        arXiv 2401.13558, figures of input against target alignment.
    """
    p = (jnp.pi / 2 - jnp.arccos(alignment)) / 2
    determinant = jnp.cos(2 * p)
    x = (jnp.cos(p) * input_alignment - jnp.sin(p) * target_alignment) / determinant
    y = (jnp.cos(p) * target_alignment - jnp.sin(p) * input_alignment) / determinant
    return jnp.stack(jnp.broadcast_arrays(x, y), axis=-1)


def _check_targets(num_components: int, num_targets: int) -> None:
    if not 1 <= num_targets <= num_components:
        raise ValueError(f"between 1 and {num_components} targets, not {num_targets}")


def _unit_trace(kernel: Array) -> Array:
    return kernel / jnp.trace(kernel)


def _at_cosine(start: Array, end: Array, direction: Array, cosine: Scalar) -> Array:
    """The point between start and end whose cosine with a direction is the given one.

    Of the quadratic ``<w, d>^2 = c^2 |w|^2 |d|^2`` along the segment, the root in [0, 1]; start and
    end lie on different sides of c.
    """
    direction = numerics.normalize(direction)
    step = end - start
    along, along_step = jnp.sum(start * direction), jnp.sum(step * direction)
    square = jnp.square(cosine)
    a = jnp.square(along_step) - square * jnp.sum(step * step)
    b = along * along_step - square * jnp.sum(start * step)
    c = jnp.square(along) - square * jnp.sum(start * start)
    # The stable pair of roots: no difference of almost equal numbers.
    q = -(b + jnp.where(b < 0, -1, 1) * numerics.safe_sqrt(jnp.square(b) - a * c))
    roots = jnp.stack(
        [
            numerics.safe_divide(numerator=q, denominator=a, fallback=2.0),
            numerics.safe_divide(numerator=c, denominator=q, fallback=0.0),
        ]
    )
    distance = jnp.abs(roots - jnp.clip(roots, 0, 1))
    root = jnp.clip(roots[jnp.argmin(distance)], 0, 1)

    for _ in range(2):
        # Newton: squaring made the root double at c = 0, where half of its digits are lost.
        length = numerics.safe_norm(start + root * step)
        slope = along_step - cosine * jnp.sum((start + root * step) * step) / length
        excess = along + root * along_step - cosine * length
        moved = root - numerics.safe_divide(numerator=excess, denominator=slope)
        root = jnp.clip(moved, 0, 1)
    return start + root * step
