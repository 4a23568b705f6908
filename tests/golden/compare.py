"""Measures how far an output is from a recorded one, against a tolerance."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """`|actual - expected| <= relative |expected| + of_largest max|expected| + absolute`.

    Where no recorded entry exceeds `noise`, all of them count as 0 and there is no scale to be
    relative to: 1 stands in for the largest.
    """

    relative: float
    of_largest: float
    noise: float = 0.0
    absolute: float = 0.0

    @classmethod
    def default(cls, dtype: np.dtype) -> "Tolerance":
        """Bounds for values recorded in a dtype; whatever is not a float must be equal."""
        if dtype in (np.float64, np.complex128):
            return cls(1e-6, 1e-8)
        if dtype.kind in "fc":
            return cls(2e-4, 2e-6)
        return cls(0.0, 0.0)

    def __str__(self) -> str:
        absolute = f" + {self.absolute:g} absolute" if self.absolute else ""
        return f"{self.relative:g} + {self.of_largest:g} of largest{absolute}"


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far an output is from the recorded one.

    Attributes:
        of_largest: largest difference over the largest recorded entry (over 1 if all count as 0).
        used: largest share of its tolerance that an entry takes up; the output is right up to 1.
        problem: what makes the two incomparable, or an empty string.
    """

    of_largest: float
    used: float
    problem: str = ""

    @property
    def accepted(self) -> bool:
        return not self.problem and self.used <= 1


def deviation(actual: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> Deviation:
    """Compares two arrays of equal shape; NaN equals NaN and an infinity only itself."""
    if actual.shape != expected.shape:
        return _incomparable(f"has shape {actual.shape}, not {expected.shape}")
    if _is_number(actual) != _is_number(expected):
        return _incomparable(f"has dtype {actual.dtype}, not {expected.dtype}")
    if not _is_number(expected):
        wrong = int(np.sum(actual != expected))
        return _incomparable(f"{wrong} of {expected.size} entries differ") if wrong else _EQUAL
    wide = np.result_type(actual, expected, np.float64)
    actual, expected = actual.astype(wide), expected.astype(wide)
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return _incomparable("NaN or infinity is recorded where the output differs")
    if not np.all(np.isfinite(actual[finite])):
        return _incomparable("NaN or infinity where a number is recorded")
    if not finite.any():
        return _EQUAL
    size = np.abs(expected[finite])
    difference = np.abs(actual[finite] - expected[finite])
    largest = size.max() if size.max() > tolerance.noise else 1.0
    allowed = tolerance.relative * size + tolerance.of_largest * largest + tolerance.absolute
    with np.errstate(divide="ignore", invalid="ignore"):
        used = np.where(difference > 0, difference / allowed, 0.0)
    return Deviation(float(difference.max() / largest), float(used.max()))


_EQUAL = Deviation(0.0, 0.0)


def _incomparable(problem: str) -> Deviation:
    return Deviation(float("inf"), float("inf"), problem)


def _is_number(array: np.ndarray) -> bool:
    return array.dtype.kind in "biufc"
