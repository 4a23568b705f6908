"""Pictures of ten classes: digits, or CIFAR-10."""

from typing import NamedTuple

import numpy as np

from experiments.common import data
from experiments.common.errors import UserError

_TRAINING_DIGITS = 900
_PROBES = 100


class Pictures(NamedTuple):
    """Pictures with their classes.

    Attributes:
      images: In [0, 1], shape (n, side, side, channels).
      labels: 0 to 9 (n,).
    """

    images: np.ndarray
    labels: np.ndarray


def read(task: str, data_dir: str, num_train: int) -> tuple[Pictures, Pictures]:
    """Training and test pictures.

    Args:
      task: `digits` or `cifar10`.
      data_dir: Folder of the prepared TFDS set (cifar10).
      num_train: The first so many training pictures; 0 takes all.

    Returns:
      Both sets.

    Raises:
      UserError: The set is missing or damaged, or has less pictures.
    """
    if task == "digits":
        digits = data.digits()
        order = np.random.default_rng(0).permutation(len(digits.labels))
        train_part, test_part = order[:_TRAINING_DIGITS], order[_TRAINING_DIGITS:]
        train, test = (
            Pictures(digits.images[part][..., None], digits.labels[part])
            for part in (train_part, test_part)
        )
    else:
        train, test = (_tfds(task, split, data_dir) for split in ("train", "test"))
    if num_train > len(train.labels):
        raise UserError(f"--num_train={num_train}: there are {len(train.labels)} pictures")
    if num_train:
        train = Pictures(train.images[:num_train], train.labels[:num_train])
    return train, test


def _tfds(name: str, split: str, data_dir: str) -> Pictures:
    found = data.tfds_arrays(name, split, data_dir)
    return Pictures(found["image"].astype(np.float32) / 255, found["label"])


def by_class(test: Pictures, centre: np.ndarray, decoded: int) -> tuple[np.ndarray, np.ndarray]:
    """Test pictures in the order of their classes, equally many of each.

    Args:
      test: The pictures.
      centre: Subtracted from each, flattened.
      decoded: Pictures of a class in the second set.

    Returns:
      Up to 100 pictures a class whose representations are averaged, and others to decode, each
      flattened (10 n, D).

    Raises:
      UserError: A class has too few.
    """
    flat = test.images.reshape(len(test.labels), -1) - centre
    groups = [flat[test.labels == c] for c in range(10)]
    spare = min(map(len, groups)) - decoded
    if spare < 1:
        raise UserError(f"--test_samples={decoded}: a class has {spare + decoded} test pictures")
    probes = [group[decoded:][: min(spare, _PROBES)] for group in groups]
    return np.concatenate(probes), np.concatenate([group[:decoded] for group in groups])
