"""Which conditions are trained on and which are tested: combinations, listed on the host."""

import itertools
import math
from collections.abc import Sequence

import numpy as np


def generalisation_splits(labels: Sequence[float], most: int = 100) -> np.ndarray:
    """The ways to train a dichotomy on half of its positive and half of its negative conditions.

    Of each way and its mirror image (the halves exchanged) the one that trains on the first
    negative condition; halves of the negatives outside, of the positives inside, both in
    lexicographic order.

    Args:
      labels: Label of each condition, two values, the larger one positive.
      most: Where there are more ways, so many are drawn at random, always the same.

    Returns:
      The conditions trained on, ascending, shape (splits, half of the conditions).
    """
    values = np.asarray(labels)
    positive = np.flatnonzero(values == values.max()).tolist()
    first, *others = np.flatnonzero(values != values.max()).tolist()
    half = (len(others) + 1) // 2
    minus = _subsets(others, half - 1, most)
    plus = _subsets(positive, len(positive) // 2, most)
    rows = np.array([sorted((first, *m, *p)) for m in minus for p in plus])
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]


def balanced_dichotomies(num_conditions: int, most: int = 100) -> np.ndarray:
    """The ways to part the conditions in two halves.

    Args:
      num_conditions: P, even.
      most: Where there are more ways, so many are drawn at random, always the same.

    Returns:
      0 or 1, shape (dichotomies, P); condition 0 is always 0.
    """
    rows = np.array(_subsets(range(1, num_conditions), num_conditions // 2, most))
    found = np.zeros((len(rows), num_conditions), np.int32)
    np.put_along_axis(found, rows, 1, axis=1)
    return found


def _subsets(items: Sequence[int], size: int, most: int) -> list[tuple[int, ...]]:
    """All subsets of a size in lexicographic order, or a draw where they are many."""
    if math.comb(len(items), size) <= most:
        return list(itertools.combinations(items, size))
    rng = np.random.default_rng(0)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < most:
        places = np.sort(rng.choice(len(items), size, replace=False))
        drawn.add(tuple(int(items[place]) for place in places))
    return sorted(drawn)
