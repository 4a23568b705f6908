"""Where the examples come from, by --dataset: bundled, made here, or a prepared TFDS folder."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import data, loop
from experiments.common.errors import UserError

DIGITS, TEACHER, IMAGES = "digits", "teacher", "images32"

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The authors widen the deviation for all their colour pictures.
_WIDER = 1.5
# Black rows and columns around a picture before a part of its old size is cut out.
_BORDER = 2
_TRAIN_DIGITS = 1437
_SHAPES = ("disc", "square", "cross", "ring", "bar")


class Set(NamedTuple):
    """What a name of --dataset stands for.

    Attributes:
      pictures: Whether the convolutional network reads it; the others read flat vectors.
      tfds: Name of the prepared set, empty for what is made here.
      test: Name of its test split.
      moments: Mean and deviation of the colours.
    """

    pictures: bool
    tfds: str = ""
    test: str = "test"
    moments: tuple[tuple[float, ...], tuple[float, ...]] = _CIFAR


SETS = {
    DIGITS: Set(pictures=False),
    TEACHER: Set(pictures=False),
    "mnist": Set(pictures=False, tfds="mnist"),
    "fashion_mnist": Set(pictures=False, tfds="fashion_mnist"),
    IMAGES: Set(pictures=True),
    "cifar10": Set(pictures=True, tfds="cifar10"),
    "cifar100": Set(pictures=True, tfds="cifar100"),
    "svhn_cropped": Set(pictures=True, tfds="svhn_cropped"),
    "imagenet32": Set(
        pictures=True, tfds="imagenet_resized/32x32", test="validation", moments=_IMAGENET
    ),
}


class Examples(NamedTuple):
    """Examples as they are stored.

    Attributes:
      images: (N, d) or (N, 32, 32, 3), float32 in [0, 1] or uint8.
      labels: Classes (N,).
    """

    images: Any
    labels: Any


class Ordered(NamedTuple):
    """Resident training data.

    Attributes:
      examples: All of them.
      order: A permutation for each epoch (epochs, N).
    """

    examples: Examples
    order: Any


class Batch(NamedTuple):
    """What one step trains on: inputs (B, ...) float32 and classes (B,)."""

    inputs: jax.Array
    labels: jax.Array


class Source(NamedTuple):
    """Data of one run.

    Attributes:
      batches: For `loop.fit`.
      test: Test examples.
      moments: Mean and deviation of the colours; None for flat vectors.
      num_classes: Classes.
      num_inputs: Numbers of a flat vector, or channels of a picture.
      steps_per_epoch: Batches of an epoch; an incomplete one is left out.
    """

    batches: loop.Resident
    test: Examples
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None
    num_classes: int
    num_inputs: int
    steps_per_epoch: int


def open_source(config: Any) -> Source:
    """The data of a run; all seeds see the same batches in the same order.

    Args:
      config: The experiment's settings.

    Returns:
      The source.

    Raises:
      UserError: A file is missing or damaged, or there are fewer examples than a batch has.
    """
    spec = SETS[config.dataset]
    train, test = _read(config.dataset, config.data_dir, config.limit)
    train = Examples(*(part[: config.limit or None] for part in train))
    num_train = len(train.labels)
    if num_train < config.batch_size:
        raise UserError(f"--batch_size={config.batch_size}: there are {num_train} examples")
    rng = np.random.default_rng([config.seed, 1])
    order = np.stack([rng.permutation(num_train) for _ in range(config.epochs)]).astype(np.int32)
    moments = spec.moments if spec.pictures else None
    steps_per_epoch = num_train // config.batch_size
    sample = functools.partial(
        _sample, moments=moments, batch_size=config.batch_size, steps_per_epoch=steps_per_epoch
    )
    return Source(
        batches=loop.Resident(Ordered(train, order), sample),
        test=test,
        moments=moments,
        num_classes=int(max(train.labels.max(), test.labels.max())) + 1,
        num_inputs=train.images.shape[-1],
        steps_per_epoch=steps_per_epoch,
    )


def prepare(images: jax.Array, moments: Any) -> jax.Array:
    """Inputs of the network from stored images.

    Args:
      images: (B, ...), uint8 or float32 in [0, 1].
      moments: Mean and deviation of the colours; None leaves the values in [0, 1].

    Returns:
      float32, in the same shape.
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    if moments is None:
        return images
    mean, deviation = map(jnp.asarray, moments)
    return (images - mean) / (_WIDER * deviation)


def augmented(key: jax.Array, images: jax.Array) -> jax.Array:
    """Pictures mirrored half of the time and shifted by at most two pixels, black at the border.

    Args:
      key: Random key.
      images: (B, H, W, C).

    Returns:
      (B, H, W, C), in the same dtype.
    """
    flip_key, shift_key = jax.random.split(key)
    mirror = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
    images = jnp.where(mirror, images[:, :, ::-1], images)
    framed = jnp.pad(images, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER), (0, 0)))
    corners = jax.random.randint(shift_key, (len(images), 2), 0, 2 * _BORDER + 1)

    def cut(picture: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(picture, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(framed, corners)


def _sample(
    source: Ordered,
    key: jax.Array,
    step: jax.Array,
    *,
    moments: Any,
    batch_size: int,
    steps_per_epoch: int,
) -> Batch:
    start = (step % steps_per_epoch) * batch_size
    row = source.order[step // steps_per_epoch]
    chosen = jax.lax.dynamic_slice_in_dim(row, start, batch_size)
    images = source.examples.images[chosen]
    if moments is not None:
        images = augmented(key, images)
    return Batch(prepare(images, moments), source.examples.labels[chosen])


def _read(name: str, data_dir: str, limit: int) -> tuple[Examples, Examples]:
    spec = SETS[name]
    if name == DIGITS:
        digits = data.digits()
        order = np.random.default_rng(0).permutation(len(digits.labels))
        everything = Examples(digits.images.reshape(len(order), -1)[order], digits.labels[order])
        return _split(everything, _TRAIN_DIGITS)
    if name == TEACHER:
        return _split(teacher(2500), 2000)
    if name == IMAGES:
        return _split(drawings(5000), 4000)
    splits = []
    for split, most in (("train", limit or None), (spec.test, None)):
        found = data.tfds_arrays(spec.tfds, split, data_dir, most)
        images = found["image"]
        if "label" not in found:
            raise UserError(f"--dataset={name}: the set in --data_dir has no labels")
        wanted = (32, 32, 3) if spec.pictures else (28, 28, 1)
        if images.shape[1:] != wanted:
            raise UserError(f"--dataset={name}: pictures are {images.shape[1:]}, not {wanted}")
        flat = images if spec.pictures else images.reshape(len(images), -1)
        splits.append(Examples(flat, found["label"]))
    return splits[0], splits[1]


def _split(examples: Examples, num_train: int) -> tuple[Examples, Examples]:
    first, second = zip(*((part[:num_train], part[num_train:]) for part in examples), strict=True)
    return Examples(*first), Examples(*second)


def teacher(count: int) -> Examples:
    """Uniform vectors, labelled by a fixed random network 16-32-4 of tanh units.

    Args:
      count: How many.

    Returns:
      The examples; 4 classes.
    """
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(16, 32)) / 4, rng.normal(size=(32, 4))
    images = rng.uniform(size=(count, 16)).astype(np.float32)
    # Centred: otherwise one class takes nearly all.
    scores = np.tanh(4 * (images - 0.5) @ first) @ second
    return Examples(images, scores.argmax(axis=1).astype(np.int32))


def drawings(count: int) -> Examples:
    """Noisy pictures 32x32 of five shapes, plain or striped: ten classes.

    Args:
      count: How many.

    Returns:
      The examples; class 2 s + t is shape s with texture t.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count).astype(np.int32)
    centre = rng.uniform(11, 21, (2, count, 1, 1))
    radius = rng.uniform(6, 9, (count, 1, 1))
    grid = np.arange(32.0)
    down, right = grid[None, :, None] - centre[0], grid[None, None, :] - centre[1]
    far, near = np.maximum(abs(down), abs(right)), np.minimum(abs(down), abs(right))
    distance = np.hypot(down, right)
    masks = {
        "disc": distance < radius,
        "square": far < 0.85 * radius,
        "cross": (near < 0.3 * radius) & (far < radius),
        "ring": (distance < radius) & (distance > 0.55 * radius),
        "bar": (abs(down) < 0.35 * radius) & (abs(right) < 1.2 * radius),
    }
    shape, texture = np.divmod(labels, 2)
    mask = np.select([(shape == i)[:, None, None] for i in range(5)], [masks[s] for s in _SHAPES])
    stripes = np.where((down + right) % 4 < 2, 1.0, 0.2)
    mask = mask * np.where(texture[:, None, None] == 1, stripes, 1.0)
    colour, ground = rng.uniform(0.5, 1, (count, 1, 1, 3)), rng.uniform(0, 0.3, (count, 1, 1, 3))
    pictures = ground + mask[..., None] * (colour - ground)
    pictures += rng.normal(scale=0.05, size=pictures.shape)
    return Examples((255 * pictures.clip(0, 1)).round().astype(np.uint8), labels)
