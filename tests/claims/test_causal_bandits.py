"""The quick preset of the causal bandits: what the README says of it."""

import pytest

from tests.claims import quick


@pytest.mark.claims
def test_the_judged_claims(tmp_path):
    results = quick.run("causal_bandits", tmp_path)
    # The abstract's two numbers do not hold against every rival; the README tells which.
    broken = [line for line in quick.broken(results) if "(paper: " not in line]
    assert broken == []
    # Golden parity, five effects, ten on single pieces, one on samples collected again, and the
    # abstract's numbers: samples against three rivals in two settings, reward against four and,
    # where the graph changes and two rivals earn nothing, against two.
    assert len(quick.judged(results)) == 29
