"""Finds what each module of `tests.golden.papers` declares about its recorded functions."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping

import numpy as np

from tests.golden import papers
from tests.golden.compare import Tolerance

Arrays = dict[str, np.ndarray]
Adapter = Callable[[Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Paper:
    """Adapters of one paper, and what it declares about comparing their outputs.

    Attributes:
        slug: name of the module and of the file of vectors.
        adapters: by function, from the inputs of a case to its outputs.
        tolerances: by "function" or "function/output" (or the beginning of a nested output name).
        information: keys like those of `tolerances`, of outputs that are recorded, not compared.
        missing: by function, the written reason why it has no adapter.
    """

    slug: str
    adapters: Mapping[str, Adapter]
    tolerances: Mapping[str, Tolerance]
    information: frozenset[str]
    missing: Mapping[str, str]

    def tolerance(self, function: str, output: str, expected: np.ndarray) -> Tolerance:
        """The tolerance declared closest to an output, else the default of its dtype."""
        for key in _keys_closest_first(function, output):
            if key in self.tolerances:
                return self.tolerances[key]
        return Tolerance.default(expected.dtype)

    def is_compared(self, function: str, output: str) -> bool:
        """Whether an output counts, rather than being recorded for information."""
        return not any(key in self.information for key in _keys_closest_first(function, output))


def slugs() -> list[str]:
    """Names of the papers that have a module of adapters."""
    return sorted(module.name for module in pkgutil.iter_modules(papers.__path__))


def load_paper(slug: str) -> Paper:
    """Imports the module of one paper and reads its declarations.

    The module holds ADAPTERS by function, and where needed MISSING (reasons by function) and, by
    function or output, INFORMATION (a set) and TOLERANCES: tuples of a bound relative to the value,
    one relative to the largest entry and, where gradients that vanish were recorded as rounding
    noise, its level; at last a bound for all entries alike, if there is one.

    Raises:
        LookupError: if there is no such module.
        ValueError: if a function is both adapted and missing, or missing without a reason.
    """
    if slug not in slugs():
        raise LookupError(f"no module tests/golden/papers/{slug}.py holds adapters")
    module = importlib.import_module(f"{papers.__name__}.{slug}")
    paper = Paper(
        slug=slug,
        adapters=dict(module.ADAPTERS),
        tolerances={
            key: Tolerance(*value) for key, value in getattr(module, "TOLERANCES", {}).items()
        },
        information=frozenset(getattr(module, "INFORMATION", ())),
        missing=dict(getattr(module, "MISSING", {})),
    )
    for function, reason in paper.missing.items():
        if function in paper.adapters or not reason.strip():
            raise ValueError(f"{slug}/{function}: needs either an adapter or a written reason")
    return paper


def _keys_closest_first(function: str, output: str) -> list[str]:
    words = [function, *output.split("/")]
    return ["/".join(words[:length]) for length in range(len(words), 0, -1)]
