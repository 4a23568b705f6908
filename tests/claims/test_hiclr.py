"""HiCLR's quick preset: what the README says of it; and the protocols that take longer."""

import pytest

from experiments.common import app, files
from experiments.hiclr import main
from tests.claims import quick


@pytest.mark.claims
def test_every_judged_claim_holds(tmp_path):
    results = quick.run("hiclr", tmp_path)
    assert quick.broken(results) == []
    # Golden parity, six of direction and floor, four of queue and momentum, one gain.
    assert len(quick.judged(results)) == 12


@pytest.mark.claims
def test_all_protocols_run_on_three_streams(tmp_path):
    words = ["--preset=smoke", "--method=hiclr", "--stream=three", f"--workdir={tmp_path}"]
    words += ["--num_seeds=2", "--protocols=linear,finetune,semi_1,semi_10"]
    assert app.run(main.EXPERIMENT, ["hiclr", *words]) == 0
    (measured,) = files.read_json(tmp_path / "results.json")["methods"].values()
    kinds = ("probe", "linear", "finetune", "semi_1", "semi_10")
    streams = ("joint", "motion", "bone")
    expected = {f"{kind}_{stream}" for kind in kinds for stream in (*streams, "ensemble")}
    assert set(measured) == expected | {f"knn_{stream}" for stream in streams}
