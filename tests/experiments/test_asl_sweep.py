"""The sweep of ASL: weights as a part of the seeds' axis, one training a step count, its figure."""

import numpy as np
import pytest
from PIL import Image

from experiments.asl import main, sweep
from experiments.common import app, files, metrics


def run(workdir, *words):
    words = ["--preset=smoke", f"--workdir={workdir}", *words]
    return app.run(sweep.EXPERIMENT, ["asl_sweep", *words])


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory):
    """One cell, two seeds, four steps."""
    workdir = tmp_path_factory.mktemp("sweep")
    assert run(workdir, "--method=steps_1200_w_nr_10", "--num_seeds=2") == 0
    return workdir


def test_a_cell_trains_all_weights_of_its_step_count(one_cell):
    results = files.read_json(one_cell / "results.json")
    measured = results["methods"]["steps_1200_w_nr_10"]
    assert set(measured) == set(sweep.MEASURED)
    scores = files.read_arrays(one_cell / "steps_1200" / "scores.npz")
    for name, values in scores.items():
        assert values.shape == (2, len(sweep.WEIGHTS))
        assert np.all((values >= 0) & (values <= 1))
        assert list(values[:, sweep.WEIGHTS.index(10.0)]) == measured[name]["per_seed"]
    assert results["figures"] == ["sweep.png"]
    assert all(c["measured"] is None for c in results["claims"])


def test_the_weights_of_a_seed_share_data_and_start_but_not_training(one_cell):
    rows = metrics.read(one_cell / "steps_1200" / "metrics.jsonl")
    loss = np.reshape(rows[-1]["loss"], (2, len(sweep.WEIGHTS)))
    entropy = np.reshape(rows[-1]["cross_entropy"], loss.shape)
    direction = np.reshape(rows[-1]["direction_loss"], loss.shape)
    triplet = np.reshape(rows[-1]["triplet"], loss.shape)
    # Means over the steps of a line are linear, so the weights can be read off the parts.
    settings = main.EXPERIMENT.settings("smoke")
    weights = (loss - settings.w_ce * entropy - settings.w_tri * triplet) / direction
    np.testing.assert_allclose(weights, np.tile(sweep.WEIGHTS, (2, 1)), atol=1e-3)
    assert not np.allclose(entropy[0], entropy[1])
    # After four steps of warm-up the networks of one seed have hardly moved apart.
    np.testing.assert_allclose(entropy, np.tile(entropy[:, :1], len(sweep.WEIGHTS)), rtol=0.02)


def test_another_cell_of_the_step_count_trains_nothing(one_cell, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(sweep, "_scores", refuse)
    config = sweep.EXPERIMENT.settings("smoke", method="steps_1200_w_nr_30", num_seeds=2)
    folder = app.Run(one_cell, devices=None, seed_keys=None)
    outcome = sweep.measure(config, folder)
    scores = files.read_arrays(one_cell / "steps_1200" / "scores.npz")
    for name in sweep.MEASURED:
        np.testing.assert_array_equal(outcome.metrics[name], scores[name][:, -1])


def test_a_folder_of_other_settings_is_refused(one_cell, capsys):
    assert run(one_cell, "--method=steps_1200_w_nr_30", "--num_seeds=2") == 2
    assert "other settings (method)" in capsys.readouterr().err


def test_all_cells_make_the_figure_and_the_claims(tmp_path):
    rng = np.random.default_rng(0)
    outcomes = {
        name: app.Outcome({metric: rng.uniform(size=2) for metric in sweep.MEASURED})
        for name in sweep.CELLS
    }
    config = sweep.EXPERIMENT.settings("quick")
    assert config.compare
    sweep.draw(config, outcomes, tmp_path, tmp_path)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 1000
    claims = sweep.claims(config, outcomes)
    assert len(claims) == len(sweep.STEPS)
    asl, control = outcomes["steps_300_w_nr_10"].metrics, outcomes["steps_300_w_nr_0"].metrics
    expected = np.mean(asl["mu_ap_norm_filter"] - control["mu_ap_cosine"])
    assert claims[0].measured == pytest.approx(expected)
    assert {c.holds for c in claims} == {None}
