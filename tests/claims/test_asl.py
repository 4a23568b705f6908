"""ASL's quick preset: what the README says of it."""

import pytest

from tests.claims import quick


@pytest.mark.claims
def test_every_judged_claim_holds(tmp_path):
    results = quick.run("asl", tmp_path)
    assert quick.broken(results) == []
    # Golden parity, six identities and four effects: none was left unmeasured.
    assert len(quick.judged(results)) == 11
