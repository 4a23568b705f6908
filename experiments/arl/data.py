"""Pairs of sound and picture: digits that stand in for them, and the files of a real set."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import data
from experiments.common.errors import UserError

# Of the 1797 digits, so many train.
NUM_TRAIN = 900

# torchvision's RandomResizedCrop, and the moments of ImageNet's pixels.
_CROP_AREA = (0.08, 1.0)
_LARGEST_ASPECT = 4 / 3
_PIXEL_MEAN = (0.485, 0.456, 0.406)
_PIXEL_DEVIATION = (0.229, 0.224, 0.225)


class Examples(NamedTuple):
    """Paired examples.

    Attributes:
      audio: Sound as a picture of one channel, shape (N, H, W, 1).
      visual: Pictures, shape (N, H', W', channels).
      labels: Classes, shape (N,).
    """

    audio: Any
    visual: Any
    labels: Any


def paired_digits(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    noise_audio: float,
    noise_visual: float,
    visual_scale: float,
) -> tuple[Examples, Examples]:
    """Two noisy digits of one class as the two modalities of an example; traceable.

    "Audio" is a digit, "visual" another one of its class from the same split: a random permutation
    within each class.  The noise is drawn once.  A small scale makes the visual modality slow to
    learn, however much it tells.

    Args:
      key: Random key of split, pairs and noise.
      images: All digits in [0, 1], shape (N, 8, 8).
      labels: Their classes, shape (N,).
      noise_audio: Deviation of the noise on audio.
      noise_visual: Deviation of the noise on visual, before scaling.
      visual_scale: Factor of visual, noise included.

    Returns:
      Training and test examples, with a channel axis.
    """
    split_key, *keys = jax.random.split(key, 3)
    order = jax.random.permutation(split_key, len(labels))

    def pair(key: jax.Array, chosen: jax.Array) -> Examples:
        pair_key, audio_key, visual_key = jax.random.split(key, 3)
        own = labels[chosen]
        # Both orders go by class, so that their entries pair up within each class.
        ordered = jnp.argsort(own)
        shuffled = jnp.lexsort((jax.random.uniform(pair_key, own.shape), own))
        partner = jnp.zeros_like(ordered).at[ordered].set(shuffled)
        audio, visual = images[chosen], images[chosen][partner]
        audio += noise_audio * jax.random.normal(audio_key, audio.shape)
        visual += noise_visual * jax.random.normal(visual_key, visual.shape)
        return Examples(audio[..., None], visual_scale * visual[..., None], own)

    return pair(keys[0], order[:NUM_TRAIN]), pair(keys[1], order[NUM_TRAIN:])


def gaussian_regression(
    key: jax.Array, var: jax.Array, *, num_samples: int, noise: float = 0.5
) -> tuple[jax.Array, jax.Array]:
    """A target and unbiased predictions of it with independent Gaussian errors; traceable.

    ``y = u + noise`` and ``s_i = u + e_i`` with ``e_i ~ N(0, v_i)`` and ``u ~ N(0, 1)``.

    Args:
      key: Random key.
      var: Variances of the errors, shape (n,).
      num_samples: Samples.
      noise: Deviation of the noise that no prediction can remove.

    Returns:
      Targets (N,) and predictions (N, n).
    """
    truth_key, noise_key, error_key = jax.random.split(key, 3)
    truth = jax.random.normal(truth_key, (num_samples,), var.dtype)
    target = truth + noise * jax.random.normal(noise_key, (num_samples,), var.dtype)
    errors = jax.random.normal(error_key, (num_samples, *var.shape), var.dtype)
    return target, truth[:, None] + jnp.sqrt(var) * errors


def read_pairs(folder: str) -> tuple[Examples, Examples]:
    """Reads `train.npz` and `test.npz` of a real set.

    Each holds `audio` (N, F, T) floats (log-spectrograms), `image` (N, H, W, 3) uint8 and `label`
    (N,) integers from 0.

    Args:
      folder: Where the two files are.

    Returns:
      Training and test examples as stored (no copy in float32), audio with a channel axis.

    Raises:
      UserError: A file is missing or damaged, or the two do not fit each other.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--data_dir={folder}: no such folder; it must hold train.npz and test.npz")
    train, test = (_read_split(Path(folder) / f"{split}.npz") for split in ("train", "test"))
    if train.audio.shape[1:] != test.audio.shape[1:]:
        raise UserError(
            f"{folder}: spectrograms of train.npz are {train.audio.shape[1:3]}, "
            f"of test.npz {test.audio.shape[1:3]}"
        )
    if test.labels.max() > train.labels.max():
        raise UserError(
            f"{folder}/test.npz has the label {test.labels.max()}, "
            f"train.npz none above {train.labels.max()}"
        )
    return train, test


def _read_split(path: Path) -> Examples:
    found = data.load_npz(
        path,
        {
            "audio": ((None, None, None), "f"),
            "image": ((None, None, None, 3), "u"),
            "label": ((None,), "iu"),
        },
    )
    sizes = {name: len(array) for name, array in found.items()}
    if len(set(sizes.values())) > 1 or not sizes["label"]:
        told = ", ".join(f"{size} of {name!r}" for name, size in sizes.items())
        raise UserError(f"{path}: the arrays must be as long as each other: {told}")
    if found["image"].dtype != np.uint8:
        raise UserError(f"{path}: 'image' has dtype {found['image'].dtype}, expected uint8")
    if found["label"].min() < 0:
        raise UserError(f"{path}: 'label' holds {found['label'].min()}, labels start at 0")
    return Examples(found["audio"][..., None], found["image"], found["label"].astype(np.int32))


def augmented(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Training pictures: a random part resized to a square, mirrored half of the time.

    The part keeps a share U(0.08, 1) of the area at an aspect ratio that is log-uniform in
    [3/4, 4/3], narrowed where it would not fit.

    Args:
      key: Random key.
      images: uint8, shape (B, H, W, 3).
      size: Side of the result.

    Returns:
      Normalised floats, shape (B, size, size, 3).
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        area, aspect, top, left, mirror = jax.random.uniform(key, (5,))
        frame = jnp.array(image.shape[:2], jnp.float32)
        kept = (_CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * area) * jnp.prod(frame)
        stretch = jnp.exp(0.5 * jnp.log(_LARGEST_ASPECT) * (2 * aspect - 1))
        extent = jnp.minimum(jnp.sqrt(kept) * jnp.stack([stretch, 1 / stretch]), frame)
        corner = jnp.stack([top, left]) * (frame - extent)
        part = _resized(image, size / extent, -corner * size / extent, size)
        return jnp.where(mirror < 0.5, part[:, ::-1], part)

    return _normalized(jax.vmap(one)(jax.random.split(key, len(images)), images))


def centred(images: jax.Array, size: int) -> jax.Array:
    """Test pictures: the whole picture resized to a square.

    Args:
      images: uint8, shape (B, H, W, 3).
      size: Side of the result.

    Returns:
      Normalised floats, shape (B, size, size, 3).
    """
    scale = size / jnp.array(images.shape[1:3], jnp.float32)
    resized = jax.vmap(lambda image: _resized(image, scale, jnp.zeros(2), size))
    return _normalized(resized(images))


def _resized(image: jax.Array, scale: jax.Array, shift: jax.Array, size: int) -> jax.Array:
    """A window of a picture as floats in [0, 1], antialiased bilinear as Pillow does it."""
    return jax.image.scale_and_translate(
        image / jnp.float32(255), (size, size, 3), (0, 1), scale, shift, "linear", antialias=True
    )


def _normalized(images: jax.Array) -> jax.Array:
    return (images - jnp.array(_PIXEL_MEAN)) / jnp.array(_PIXEL_DEVIATION)
