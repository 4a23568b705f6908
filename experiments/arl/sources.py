"""Where the examples of a run come from, by --dataset."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.arl import data, methods
from experiments.common import data as bundled
from experiments.common import loop
from experiments.common.errors import UserError

DIGITS, CREMA_D = "paired_digits", "crema_d"


class Batch(NamedTuple):
    """What one step trains on.

    Attributes:
      examples: B of them.
      epoch: Which pass through the data this is, from 0; scalar.
      recipe: How the method trains; scalars.
    """

    examples: data.Examples
    epoch: jax.Array
    recipe: methods.Recipe


class Ordered(NamedTuple):
    """Resident training data.

    Attributes:
      examples: All of them.
      order: Key of the epochs' permutations.
      recipe: How the method trains.
    """

    examples: data.Examples
    order: jax.Array
    recipe: methods.Recipe


class Source(NamedTuple):
    """Data of one run.

    Attributes:
      batches: For `loop.fit`.
      test: Test examples, with a leading axis of seeds if `per_seed`.
      per_seed: Whether each seed has its own data.
      num_classes: Classes.
      shapes: Of one example's audio and picture as the encoders see them.
      steps_per_epoch: Batches in a pass; what is left over waits for another permutation.
    """

    batches: loop.Resident
    test: data.Examples
    per_seed: bool
    num_classes: int
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    steps_per_epoch: int


def open_source(config: Any, seed_keys: jax.Array) -> Source:
    """The data of a run.

    Args:
      config: The experiment's settings.
      seed_keys: One key a seed.

    Returns:
      The source.

    Raises:
      UserError: A file is missing or damaged, or smaller than a batch.
    """
    if config.dataset == DIGITS:
        digits = bundled.digits()
        make = functools.partial(
            data.paired_digits,
            images=jnp.asarray(digits.images),
            labels=jnp.asarray(digits.labels),
            noise_audio=config.noise_audio,
            noise_visual=config.noise_visual,
            visual_scale=config.visual_scale,
        )
        # Apart from the keys that the loop derives from the same seed.
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.split(key, 3)[2], 2))(seed_keys)
        train, test = jax.jit(jax.vmap(make))(keys)
        order = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        num_train = train.labels.shape[1]
        shapes = train.audio.shape[2:], train.visual.shape[2:]
    else:
        train, test = data.read_pairs(config.data_dir)
        # All seeds share the files, and with them the order of the batches.
        order = jax.random.fold_in(jax.random.key(config.seed), 1)
        num_train = len(train.labels)
        shapes = train.audio.shape[1:], (config.image_size, config.image_size, 3)
    if num_train < config.batch_size:
        raise UserError(f"--batch_size={config.batch_size}: there are {num_train} examples")
    steps_per_epoch = num_train // config.batch_size
    sample = functools.partial(
        _sample,
        num_examples=num_train,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
    )
    per_seed = config.dataset == DIGITS
    recipe = methods.RECIPES[config.method].arrays()
    if per_seed:
        recipe = jax.tree.map(lambda x: np.full(len(seed_keys), x), recipe)
    return Source(
        batches=loop.Resident(Ordered(train, order, recipe), sample, per_seed=per_seed),
        test=test,
        per_seed=per_seed,
        num_classes=int(np.max(train.labels)) + 1,
        shapes=shapes,
        steps_per_epoch=steps_per_epoch,
    )


def _sample(
    source: Ordered,
    key: jax.Array,
    step: jax.Array,
    *,
    num_examples: int,
    batch_size: int,
    steps_per_epoch: int,
) -> Batch:
    """A new permutation each epoch, without the incomplete last batch."""
    del key
    epoch = step // steps_per_epoch
    order = jax.random.permutation(jax.random.fold_in(source.order, epoch), num_examples)
    start = (step % steps_per_epoch) * batch_size
    chosen = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
    examples = jax.tree.map(lambda x: x[chosen], source.examples)
    return Batch(examples, epoch, source.recipe)
