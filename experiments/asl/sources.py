"""Where the pictures of a run come from, by --dataset."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.asl import data, disc, scoring, training
from experiments.common import loop
from experiments.common.errors import UserError

PROCEDURAL, PHOTOS, DISC = "synthetic_copies", "photos", "disc21"
_CHUNK = 256


class Pictures(NamedTuple):
    """One set of pictures to describe.

    Attributes:
      chunks: Called for an iterator over chunks: one array (seeds, B, S, S, 3), or (B, S, S, 3)
        where all seeds share the pictures, for each size S of `sizes`.
      total: Pictures in all (of one seed).
      per_seed: Whether each seed has its own pictures.
    """

    chunks: Callable[[], Iterator[tuple[np.ndarray, ...]]]
    total: int
    per_seed: bool


class Source(NamedTuple):
    """Data of one run.

    Attributes:
      batches: For `loop.fit`.
      num_classes: Training images that are a class each.
      queries: Test queries.
      references: Test references.
      training: Training originals, for score normalisation.
      truths: What is right, one a seed.
    """

    batches: loop.Resident | loop.Streamed
    num_classes: int
    queries: Pictures
    references: Pictures
    training: Pictures
    truths: list[scoring.Truth]


def sizes(config: Any) -> tuple[int, ...]:
    """Sides of the pictures that test time needs.

    Args:
      config: The experiment's settings.

    Returns:
      The input size, whose lengths count, and the sizes that the descriptor averages.
    """
    return (config.input_size, *(config.multi_scale or (config.input_size,)))


def check_name(name: str) -> None:
    """Refuse an unknown --dataset.

    Args:
      name: Its value.

    Raises:
      UserError: It is none of ours.
    """
    if name not in (PROCEDURAL, PHOTOS, DISC) and not name.startswith("tfds:"):
        raise UserError(f"--dataset={name}: choose {PROCEDURAL}, {PHOTOS}, {DISC} or tfds:<name>")


def open_source(config: Any, norm_weight: Any, seed_keys: jax.Array) -> Source:
    """The data of a run.

    Args:
      config: The experiment's settings.
      norm_weight: Weight of the direction's loss: a number, or one a seed (num_seeds,).
      seed_keys: One key a seed.

    Returns:
      The source.

    Raises:
      UserError: A folder or a file is missing or damaged.
    """
    if config.dataset == DISC:
        return _disc(config, float(norm_weight), seed_keys.shape[0])
    return _resident(config, norm_weight, seed_keys)


def _resident(config: Any, norm_weight: Any, seed_keys: jax.Array) -> Source:
    counts = data.evaluation_counts(
        config.share_hard_negatives, positives=config.num_positives, unrelated=config.num_unrelated
    )
    pool = None
    if config.dataset == PHOTOS:
        pool = data.photo_scenes()
        counts = _fitting(counts, len(pool.test), config)
    elif config.dataset != PROCEDURAL:
        pool = data.tfds_scenes(
            config.dataset.removeprefix("tfds:"),
            config.data_dir,
            num_train=config.num_scenes,
            num_test=counts.scenes,
        )

    def make(key: jax.Array) -> tuple[data.Training, data.Evaluation]:
        # 2: apart from the keys that the loop derives from the same seed.
        keys = jax.random.split(jax.random.fold_in(jax.random.split(key, 3)[2], 2), 4)
        if pool is None:
            scenes = data.render_scenes(keys[0], config.num_scenes + counts.scenes)
            train, test = scenes[: config.num_scenes], scenes[config.num_scenes :]
        else:
            train, test = jnp.asarray(pool.train), jnp.asarray(pool.test)
            test = jax.random.permutation(keys[1], test)
        make_views = functools.partial(
            data.make_training, output_size=config.input_size, crop_mode=config.crop_mode
        )
        make_test = functools.partial(
            data.make_evaluation, output_size=config.input_size, crop_mode=config.crop_mode
        )
        return make_views(keys[2], train, config.num_views), make_test(keys[3], test, counts)

    # One seed after the other: the antialiased resizing of all at once would need much memory.
    train, test = loop.once(lambda keys: jax.lax.map(make, keys))(seed_keys)
    num_seeds, num_classes = train.scales.shape[:2]
    if num_classes < config.groups:
        raise UserError(f"--groups={config.groups}: the data has {num_classes} training scenes")
    order = jax.vmap(lambda key: jax.random.fold_in(key, 0x0DE4))(seed_keys)
    weight = jnp.broadcast_to(jnp.asarray(norm_weight, jnp.float32), (num_seeds,))
    return Source(
        batches=loop.Resident(
            training.Source(train, order, weight),
            functools.partial(training.sample, groups=config.groups, views=config.views),
            per_seed=True,
        ),
        num_classes=num_classes,
        queries=_chunked(test.queries, sizes(config)),
        references=_chunked(test.references, sizes(config)),
        training=_chunked(train.images[:, :, 0], sizes(config)),
        truths=[_truth(test, seed) for seed in range(num_seeds)],
    )


def _fitting(counts: data.Counts, available: int, config: Any) -> data.Counts:
    """Fewer positives and unrelated queries, in proportion, where test scenes are few."""
    share = min(1.0, available / counts.scenes)
    return data.evaluation_counts(
        config.share_hard_negatives,
        positives=int(counts.positives * share),
        unrelated=int(counts.unrelated * share),
    )


def _chunked(images: jax.Array, sides: tuple[int, ...]) -> Pictures:
    def resized(part: jax.Array, side: int) -> np.ndarray:
        if side == part.shape[2]:
            return np.asarray(part)
        shape = (*part.shape[:2], side, side, part.shape[4])
        return np.asarray(jnp.clip(jax.image.resize(part, shape, "bilinear"), 0, 1))

    def chunks() -> Iterator[tuple[np.ndarray, ...]]:
        for start in range(0, images.shape[1], _CHUNK):
            part = images[:, start : start + _CHUNK]
            yield tuple(resized(part, side) for side in sides)

    return Pictures(chunks, images.shape[1], per_seed=True)


def _truth(test: data.Evaluation, seed: int) -> scoring.Truth:
    def pairs(reference_of_query: jax.Array) -> np.ndarray:
        reference = np.asarray(reference_of_query[seed])
        query = np.flatnonzero(reference >= 0)
        return np.stack([query, reference[query]], axis=1)

    return scoring.Truth(pairs(test.match), pairs(test.hard_negative))


def _disc(config: Any, norm_weight: float, num_seeds: int) -> Source:
    train = disc.DiscTraining(
        config.data_dir,
        input_size=config.input_size,
        groups=config.groups,
        views=config.views,
        seed=config.seed,
        hard_negative_pairs=config.hard_negative_pairs,
    )
    tests = [disc.DiscEvaluation(config.data_dir, input_size=side) for side in sizes(config)]

    def fetch(step: int) -> training.Batch:
        return training.Batch(**train.fetch(step), norm_weight=np.float32(norm_weight))

    def pictures(kind: disc.Kind) -> Pictures:
        def chunks() -> Iterator[tuple[np.ndarray, ...]]:
            yield from zip(*(test.batches(kind, _CHUNK) for test in tests), strict=True)

        return Pictures(chunks, tests[0].count(kind), per_seed=False)

    # No hard-negative pair of this layout has a known direction at test time.
    truth = scoring.Truth(tests[0].ground_truth, np.zeros((0, 2), np.int64))
    return Source(
        batches=loop.Streamed(fetch),
        num_classes=train.num_classes,
        queries=pictures("query"),
        references=pictures("reference"),
        training=pictures("training"),
        truths=[truth] * num_seeds,
    )
