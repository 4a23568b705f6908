"""Runs a paper's recorded cases through its adapters in float64 and tells the deviations.

    python -m tests.golden.parity asl [--vectors DIR] [--json]

exits with 0 if every group agrees within its tolerance, with 1 if one does not.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

import jax
import numpy as np

from tests.golden import cases
from tests.golden.compare import Deviation, deviation
from tests.golden.discovery import Paper, load_paper


@dataclasses.dataclass(frozen=True)
class Group:
    """Agreement of one recorded function over all its cases.

    Attributes:
        function: name of the group.
        cases: number of cases run.
        worst: case and output that take up most of their tolerance.
        deviation: largest difference there, over the largest recorded entry.
        used: share of the tolerance used there; the group agrees up to 1.
        tolerance: the bound there, in words.
        problem: why the group does not agree, if it is not a matter of digits.
        reason: why the group is not compared, if it is declared missing.
    """

    function: str
    cases: int
    worst: str = ""
    deviation: float = 0.0
    used: float = 0.0
    tolerance: str = ""
    problem: str = ""
    reason: str = ""

    @property
    def accepted(self) -> bool:
        return bool(self.reason) or (not self.problem and self.used <= 1)

    def __str__(self) -> str:
        head = f"{'ok  ' if self.accepted else 'FAIL'} {self.function} ({self.cases} cases)"
        if self.reason:
            return f"{head}: not compared: {self.reason}"
        if self.problem:
            return f"{head}: {' '.join(filter(None, [self.worst, self.problem]))}"
        return (
            f"{head}: worst {self.deviation:.2e} of largest entry, "
            f"{self.used:.2g} of tolerance {self.tolerance} at {self.worst}"
        )


def run_case(paper: Paper, case: cases.Case) -> dict[str, tuple[Deviation, str]]:
    """Runs one case in float64; gives deviation and tolerance of each compared output.

    Raises:
        LookupError: if the function has no adapter.
    """
    if case.function not in paper.adapters:
        raise LookupError(
            f"{paper.slug}/{case.function} has neither an adapter nor a written reason in MISSING"
        )
    with jax.enable_x64(True):
        actual = paper.adapters[case.function](dict(case.inputs))
    results = {}
    for output, expected in case.expected.items():
        if not paper.is_compared(case.function, output):
            continue
        tolerance = paper.tolerance(case.function, output, expected)
        if output in actual:
            found = deviation(np.asarray(actual[output]), expected, tolerance)
        else:
            found = Deviation(float("inf"), float("inf"), "is not returned by the adapter")
        results[output] = found, str(tolerance)
    return results


def check_paper(slug: str, vectors: pathlib.Path = cases.VECTORS) -> list[Group]:
    """Runs all cases of a paper and keeps the worst of each group."""
    paper = load_paper(slug)
    functions: dict[str, list[cases.Case]] = {}
    for case in cases.load_cases(vectors / f"{slug}.npz"):
        functions.setdefault(case.function, []).append(case)
    return [_check_group(paper, function, group) for function, group in functions.items()]


def main(arguments: list[str] | None = None) -> int:
    """Prints the agreement of a paper; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.golden.parity", description=__doc__.split("\n")[0])
    parser.add_argument("slug", help="name of the paper, as in the file of vectors")
    parser.add_argument("--vectors", type=pathlib.Path, default=cases.VECTORS, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    path = options.vectors / f"{options.slug}.npz"
    if not path.is_file():
        parser.error(f"there is no {path}")
    try:
        groups = check_paper(options.slug, options.vectors)
    except (LookupError, cases.MalformedVectors) as error:
        parser.error(str(error))
    accepted = all(group.accepted for group in groups)
    if options.json:
        listed = [{**dataclasses.asdict(g), "accepted": g.accepted} for g in groups]
        print(json.dumps({"slug": options.slug, "accepted": accepted, "groups": _finite(listed)}))
    else:
        print(*groups, sep="\n")
    return 0 if accepted else 1


def _check_group(paper: Paper, function: str, group: list[cases.Case]) -> Group:
    if function in paper.missing:
        return Group(function, len(group), reason=paper.missing[function])
    worst = Group(function, len(group))
    for case in group:
        try:
            results = run_case(paper, case)
        except Exception as error:
            # One broken adapter must not hide how the other groups fare.
            problem = f"{type(error).__name__}: {error}".split("\n")[0]
            return Group(function, len(group), worst=case.name, used=float("inf"), problem=problem)
        for output, (found, tolerance) in results.items():
            if not worst.worst or found.used > worst.used:
                worst = Group(
                    function,
                    len(group),
                    f"{case.name}/{output}",
                    found.of_largest,
                    found.used,
                    tolerance,
                    found.problem,
                )
    return worst


def _finite(groups: list[dict]) -> list[dict]:
    """The same records with null for infinity, which JSON cannot hold."""
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in group.items()}
        for group in groups
    ]


if __name__ == "__main__":
    if "JAX_PLATFORMS" not in os.environ:
        # Accelerators multiply float64 slowly or not at all.
        jax.config.update("jax_platforms", "cpu")
    # For the whole process: constants that a paper's modules make while importing count too.
    jax.config.update("jax_enable_x64", True)
    sys.exit(main())
