"""Task geometry's quick preset: what the README says of it."""

import pytest

from tests.claims import quick

# At the authors' decoding noise every dichotomy is decoded without error from both.
CEILING = "all tasks with c > 0: shattering dimension of ReLU minus tanh"


@pytest.mark.claims
def test_every_judged_claim_holds_but_the_one_at_its_ceiling(tmp_path):
    results = quick.run("task_geometry", tmp_path)
    failed = {c["statement"] for c in quick.judged(results) if c["holds"] is not True}
    assert failed <= {CEILING}
    # Golden parity, five identities and sixteen effects: none was left unmeasured.
    assert len(quick.judged(results)) == 22
