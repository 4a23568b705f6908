"""Numerical parity with every recorded case, in float64."""

import jax
import pytest

from tests.golden import adapters, cases, parity
from tests.golden.discovery import load_paper, slugs

FILES = sorted(cases.VECTORS.glob("*.npz"))


def _recorded_cases() -> list:
    return [
        pytest.param(path, number, id=f"{path.stem}/{case.function}/{case.name}")
        for path in FILES
        for number, case in enumerate(cases.load_cases(path))
    ]


@pytest.mark.parametrize(("path", "number"), _recorded_cases())
def test_agrees_with_the_recorded_outputs(path, number):
    paper = load_paper(path.stem)
    case = cases.load_cases(path)[number]
    if case.function in paper.missing:
        pytest.skip(paper.missing[case.function])
    wrong = {
        output: f"{found.problem or f'{found.of_largest:.2e} of largest entry'} ({tolerance})"
        for output, (found, tolerance) in parity.run_case(paper, case).items()
        if not found.accepted
    }
    assert not wrong
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("slug", slugs())
def test_declarations_name_recorded_functions_and_outputs(slug):
    paper = load_paper(slug)
    recorded = set()
    for case in cases.load_cases(cases.VECTORS / f"{slug}.npz"):
        recorded.add(case.function)
        for output in case.expected:
            words = output.split("/")
            recorded |= {"/".join([case.function, *words[:n]]) for n in range(1, len(words) + 1)}
    declared = {*paper.adapters, *paper.tolerances, *paper.information, *paper.missing}
    assert declared <= recorded


def test_adapters_of_all_papers_are_merged():
    assert "asl/norm_ratio_loss" in adapters.ADAPTERS
    assert {key.split("/")[0] for key in adapters.ADAPTERS} == set(slugs())


def test_every_file_of_vectors_has_adapters():
    assert {path.stem for path in FILES} == set(slugs())
