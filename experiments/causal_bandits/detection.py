"""How soon changes are noticed, and how often where there was none."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Detections(NamedTuple):
    """Verdicts on the pairs that were declared changed.

    Attributes:
      delay: Steps from each change to the first declaration of a pair that changed, or the length
        of the phase where there is none (B, changes).
      noticed: Whether there is one (B, changes).
      declared: Pairs declared changed, over all steps (B,).
      wrong: Of these, pairs that did not change at the last change (B,).
    """

    delay: np.ndarray
    noticed: np.ndarray
    declared: np.ndarray
    wrong: np.ndarray


def judge(weights: np.ndarray, times: Sequence[int], flagged: np.ndarray) -> Detections:
    """Compares declarations with what changed.

    Args:
      weights: True weights by phase (B, P, 2, N, N).
      times: First steps of the phases after the first.
      flagged: Pairs declared changed at each step (B, T, 2, N).

    Returns:
      The verdicts.
    """
    batch, horizon = flagged.shape[:2]
    changed = np.any(weights[:, 1:] != weights[:, :-1], axis=3)
    wrong = flagged[:, : times[0]].sum(axis=(1, 2, 3))
    delay = np.zeros((batch, len(times)))
    noticed = np.zeros((batch, len(times)), bool)
    for place, (begin, end) in enumerate(zip(times, [*times[1:], horizon], strict=True)):
        within, true = flagged[:, begin:end], changed[:, place, None]
        right = np.any(within & true, axis=(2, 3))
        noticed[:, place] = right.any(axis=1)
        delay[:, place] = np.where(noticed[:, place], right.argmax(axis=1), end - begin)
        wrong = wrong + np.sum(within & ~true, axis=(1, 2, 3))
    return Detections(delay, noticed, flagged.sum(axis=(1, 2, 3)), wrong)
