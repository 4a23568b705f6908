"""Basic, normal and strong augmentations of joint sequences, as pure functions of a key.

A sequence is (C, T, V, M): coordinates, frames, joints, persons.  Each transformation comes
twice: as a function of its parameters, and with the prefix `random_` as a function of a key that
draws them.  All work under vmap over sequences and jit.

Reference: HiCLR (arXiv 2211.13466) and the authors' code, whose ranges and order are kept; the
groups are applied cumulatively, `normal` after `basic`, the joint mask after both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SHEAR_AMPLITUDE = 0.5
CROP_RATIO = 6
NORMAL_METHODS = "12345"
_MAIN_ANGLE = 30.0
_OTHER_ANGLE = 1.0
_NOISE = 0.01
_BLUR_SIGMA = (0.1, 2.0)
_BLUR_REACH = 7

Sequence = Float[Array, "coordinates frames joints persons"]
Scalar = float | Float[Array, ""]


def basic(
    key: Array,
    x: Sequence,
    *,
    shear_amplitude: float = SHEAR_AMPLITUDE,
    crop_ratio: int = CROP_RATIO,
) -> Sequence:
    """The basic set BA: temporal crop, then shear.

    Args:
      key: random key.
      x: one sequence (C, T, V, M).
      shear_amplitude: see `random_shear`.
      crop_ratio: see `random_temporal_crop`.

    Returns:
      (C, T, V, M).
    """
    crop_key, shear_key = jax.random.split(key)
    x = random_temporal_crop(crop_key, x, ratio=crop_ratio)
    return random_shear(shear_key, x, amplitude=shear_amplitude)


def normal(
    key: Array,
    x: Sequence,
    *,
    mirror: tuple[int, ...],
    methods: str = NORMAL_METHODS,
    normalized_blur: bool = False,
) -> Sequence:
    """The normal set NA, in the order of `methods`.

    1 mirrored joints, 2 rotation, 3 noise, 4 blur over time, 5 one coordinate set to 0, 6 time
    reversed; 2 always, the others with probability 1/2.

    Args:
      key: random key.
      x: one sequence (C, T, V, M), as a rule after `basic`.
      mirror: for each joint the one on the other side of the body.
      methods: which of the six, as digits.
      normalized_blur: see `gaussian_blur`.

    Returns:
      (C, T, V, M).

    Raises:
      ValueError: on another digit.
    """
    if unknown := set(methods) - set("123456"):
        raise ValueError(f"methods must be digits from 1 to 6, not {sorted(unknown)}")
    for position, method in enumerate(methods):
        chosen = jax.random.fold_in(key, position)
        if method == "1":
            x = random_spatial_flip(chosen, x, mirror=mirror)
        elif method == "2":
            x = random_rotation(chosen, x)
        elif method == "3":
            x = random_noise(chosen, x)
        elif method == "4":
            x = random_blur(chosen, x, normalized=normalized_blur)
        elif method == "5":
            x = random_axis_mask(chosen, x)
        else:
            x = random_time_flip(chosen, x)
    return x


def temporal_crop(x: Sequence, start: Int[Array, ""], *, ratio: int = CROP_RATIO) -> Sequence:
    """A window of T frames of the sequence after T // ratio mirrored frames on either side.

    Args:
      x: (C, T, V, M).
      start: first frame of the window, in [0, 2 (T // ratio)].
      ratio: which part of the length is mirrored, >= 1.

    Returns:
      (C, T, V, M).
    """
    frames = x.shape[1]
    mirrored = frames // ratio
    order = np.arange(frames)
    padded = np.concatenate([order[:mirrored][::-1], order, order[frames - mirrored :][::-1]])
    window = jax.lax.dynamic_slice(jnp.asarray(padded), (start,), (frames,))
    return x[:, window]


def random_temporal_crop(key: Array, x: Sequence, *, ratio: int = CROP_RATIO) -> Sequence:
    """`temporal_crop` at a uniform start.

    Args:
      key: random key.
      x: (C, T, V, M).
      ratio: which part of the length is mirrored, >= 1.

    Returns:
      (C, T, V, M).
    """
    start = jax.random.randint(key, (), 0, 2 * (x.shape[1] // ratio) + 1)
    return temporal_crop(x, start, ratio=ratio)


def shear(x: Sequence, first: Float[Array, "3"], second: Float[Array, "3"]) -> Sequence:
    """Adds to each coordinate shares of the two others.

    `y = [[1, a0, b0], [a1, 1, b1], [a2, b2, 1]] x`.

    Args:
      x: (3, T, V, M).
      first: a (3,).
      second: b (3,).

    Returns:
      (3, T, V, M).
    """
    a, b = first, second
    rows = [[1.0, a[0], b[0]], [a[1], 1.0, b[1]], [a[2], b[2], 1.0]]
    return _mix(jnp.stack([jnp.stack([jnp.asarray(e, x.dtype) for e in row]) for row in rows]), x)


def random_shear(key: Array, x: Sequence, *, amplitude: float = SHEAR_AMPLITUDE) -> Sequence:
    """`shear` with shares from U(-amplitude, amplitude).

    Args:
      key: random key.
      x: (3, T, V, M).
      amplitude: largest share, >= 0.

    Returns:
      (3, T, V, M).
    """
    shares = jax.random.uniform(key, (2, 3), x.dtype, -amplitude, amplitude)
    return shear(x, shares[0], shares[1])


def rotate(x: Sequence, degrees: Float[Array, "3"]) -> Sequence:
    """Turns about x, then y, then z.

    Args:
      x: (3, T, V, M).
      degrees: the three angles.

    Returns:
      (3, T, V, M).
    """
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    for axis in range(3):
        # The plane that the axis leaves turned, in an order that gives all three one sign rule.
        one, other = (axis + 1) % 3, (axis + 2) % 3
        matrix = jnp.eye(3, dtype=x.dtype)
        matrix = matrix.at[one, one].set(cos[axis]).at[other, other].set(cos[axis])
        matrix = matrix.at[one, other].set(sin[axis]).at[other, one].set(-sin[axis])
        x = _mix(matrix, x)
    return x


def random_rotation(key: Array, x: Sequence) -> Sequence:
    """`rotate` by U(0, 30) degrees about a uniform main axis and U(0, 1) about the others.

    Args:
      key: random key.
      x: (3, T, V, M).

    Returns:
      (3, T, V, M).
    """
    axis_key, angle_key = jax.random.split(key)
    main = jax.random.randint(axis_key, (), 0, 3)
    largest = jnp.where(jnp.arange(3) == main, _MAIN_ANGLE, _OTHER_ANGLE).astype(x.dtype)
    return rotate(x, largest * jax.random.uniform(angle_key, (3,), x.dtype))


def spatial_flip(x: Sequence, mirror: tuple[int, ...] | Int[Array, " joints"]) -> Sequence:
    """Exchanges the limbs of the two sides; coordinates are not mirrored.

    Args:
      x: (C, T, V, M).
      mirror: for each joint the one on the other side of the body.

    Returns:
      (C, T, V, M).
    """
    return x[:, :, jnp.asarray(mirror)]


def random_spatial_flip(
    key: Array, x: Sequence, *, mirror: tuple[int, ...] | Int[Array, " joints"]
) -> Sequence:
    """`spatial_flip` with probability 1/2.

    Args:
      key: random key.
      x: (C, T, V, M).
      mirror: for each joint the one on the other side of the body.

    Returns:
      (C, T, V, M).
    """
    return jnp.where(_coin(key), spatial_flip(x, mirror), x)


def random_noise(key: Array, x: Sequence, *, deviation: float = _NOISE) -> Sequence:
    """Adds normal noise to every entry, with probability 1/2.

    Args:
      key: random key.
      x: (C, T, V, M).
      deviation: standard deviation of the noise.

    Returns:
      (C, T, V, M).
    """
    coin_key, noise_key = jax.random.split(key)
    noise = deviation * jax.random.normal(noise_key, x.shape, x.dtype)
    return jnp.where(_coin(coin_key), x + noise, x)


def gaussian_blur(x: Sequence, sigma: Scalar, *, normalized: bool = False) -> Sequence:
    """Convolves each coordinate of each joint over time with 15 taps, zeros beyond the ends.

    `y_t = sum_{|i| <= 7} exp(-i^2 / (2 sigma^2)) x_{t+i}`, as a product with a banded matrix.

    Args:
      x: (C, T, V, M).
      sigma: width in frames, > 0.
      normalized: divide by the sum of the taps; the authors do not, which amplifies up to 5 times.

    Returns:
      (C, T, V, M).
    """
    frames = np.arange(x.shape[1])
    lag = frames[:, None] - frames
    width = 2 * jnp.square(jnp.asarray(sigma, x.dtype))
    band = jnp.where(np.abs(lag) <= _BLUR_REACH, jnp.exp(-(lag**2) / width), 0)
    if normalized:
        taps = np.arange(-_BLUR_REACH, _BLUR_REACH + 1)
        band = band / jnp.sum(jnp.exp(-(taps**2) / width))
    return jnp.einsum("ts,csvm->ctvm", band.astype(x.dtype), x)


def random_blur(key: Array, x: Sequence, *, normalized: bool = False) -> Sequence:
    """`gaussian_blur` of sigma from U(0.1, 2), with probability 1/2.

    Args:
      key: random key.
      x: (C, T, V, M).
      normalized: see `gaussian_blur`.

    Returns:
      (C, T, V, M).
    """
    coin_key, sigma_key = jax.random.split(key)
    sigma = jax.random.uniform(sigma_key, (), x.dtype, *_BLUR_SIGMA)
    return jnp.where(_coin(coin_key), gaussian_blur(x, sigma, normalized=normalized), x)


def axis_mask(x: Sequence, axis: int | Int[Array, ""]) -> Sequence:
    """Sets one coordinate to 0 throughout.

    Args:
      x: (C, T, V, M).
      axis: which coordinate.

    Returns:
      (C, T, V, M).
    """
    return jnp.where((jnp.arange(x.shape[0]) == axis)[:, None, None, None], 0, x)


def random_axis_mask(key: Array, x: Sequence) -> Sequence:
    """`axis_mask` of a uniform coordinate, with probability 1/2.

    Args:
      key: random key.
      x: (C, T, V, M).

    Returns:
      (C, T, V, M).
    """
    coin_key, axis_key = jax.random.split(key)
    axis = jax.random.randint(axis_key, (), 0, x.shape[0])
    return jnp.where(_coin(coin_key), axis_mask(x, axis), x)


def time_flip(x: Sequence) -> Sequence:
    """Plays a sequence backwards.

    Args:
      x: (C, T, V, M).

    Returns:
      (C, T, V, M).
    """
    return x[:, ::-1]


def random_time_flip(key: Array, x: Sequence) -> Sequence:
    """`time_flip` with probability 1/2.

    Args:
      key: random key.
      x: (C, T, V, M).

    Returns:
      (C, T, V, M).
    """
    return jnp.where(_coin(key), time_flip(x), x)


def random_joint_mask(
    key: Array, *, frames: int, joints: int, ratio: float
) -> Bool[Array, "frames joints"]:
    """Draws which joints stay visible: in each frame floor(joints * ratio) others do not.

    One mask serves a whole batch, all persons and coordinates.

    Args:
      key: random key.
      frames: T.
      joints: V.
      ratio: part of the joints that is masked, in [0, 1].

    Returns:
      True where a joint is kept (T, V).
    """
    rank = jnp.argsort(jax.random.uniform(key, (frames, joints)), axis=1)
    return rank >= int(joints * ratio)


def apply_joint_mask(
    x: Float[Array, "*batch coordinates frames joints persons"],
    kept: Bool[Array, "frames joints"],
    fill: Scalar,
) -> Float[Array, "*batch coordinates frames joints persons"]:
    """Replaces masked joints by one value.

    Args:
      x: (..., C, T, V, M).
      kept: True where a joint is kept (T, V).
      fill: the learnable value of whatever is masked.

    Returns:
      (..., C, T, V, M).
    """
    return jnp.where(kept[:, :, None], x, jnp.asarray(fill, x.dtype))


def skele_adain(
    *,
    content: Float[Array, "*batch coordinates frames joints persons"],
    style: Float[Array, "*batch coordinates frames joints persons"],
    per_frame: bool = False,
    eps: float = 1e-5,
) -> Float[Array, "*batch coordinates frames joints persons"]:
    """Gives a sequence the mean and the deviation of another one (SkeleAdaIN).

    `y = (x - mean_x) / deviation_x * deviation_s + mean_s` for each person and coordinate.

    Args:
      content: x, whose movement stays (..., C, T, V, M).
      style: s, whose statistics are taken (..., C, T, V, M).
      per_frame: statistics over the joints of each frame, not over all frames and joints.
      eps: added to the unbiased variance before the root.

    Returns:
      (..., C, T, V, M).
    """
    axes = (-2,) if per_frame else (-3, -2)

    def mean_and_deviation(x: Array) -> tuple[Array, Array]:
        variance = jnp.var(x, axis=axes, keepdims=True, ddof=1)
        return jnp.mean(x, axis=axes, keepdims=True), jnp.sqrt(variance + eps)

    mean, deviation = mean_and_deviation(content)
    style_mean, style_deviation = mean_and_deviation(style)
    return (content - mean) / deviation * style_deviation + style_mean


def motion_stream(
    x: Float[Array, "*batch coordinates frames joints persons"],
) -> Float[Array, "*batch coordinates frames joints persons"]:
    """Steps from each frame to the next, 0 in the last frame.

    Args:
      x: (..., C, T, V, M).

    Returns:
      (..., C, T, V, M).
    """
    step = x[..., 1:, :, :] - x[..., :-1, :, :]
    return jnp.concatenate([step, jnp.zeros_like(x[..., :1, :, :])], axis=-3)


def bone_stream(
    x: Float[Array, "*batch coordinates frames joints persons"],
    parents: tuple[int, ...] | Int[Array, " joints"],
) -> Float[Array, "*batch coordinates frames joints persons"]:
    """Vectors to each joint from its parent, 0 at the root.

    Args:
      x: (..., C, T, V, M).
      parents: for each joint its parent; the root is its own.

    Returns:
      (..., C, T, V, M).
    """
    return x - x[..., jnp.asarray(parents), :]


def _mix(matrix: Float[Array, "3 3"], x: Sequence) -> Sequence:
    """The matrix applied to every coordinate vector."""
    return jnp.einsum("cd,dtvm->ctvm", matrix, x, precision=jax.lax.Precision.HIGHEST)


def _coin(key: Array) -> Bool[Array, ""]:
    return jax.random.bernoulli(key)
