"""The training loop: resume, seeds, devices' shapes, streams, signals' aftermath, NaN."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import checkpoints, loop, metrics, seeds
from experiments.common.errors import UserError
from tests.experiments import toy


def fit(folder, *, steps=60, num_seeds=2, seed=0, map_seeds=False, **values):
    config = toy.EXPERIMENT.settings("smoke", steps=steps, **values)
    init, step, batches, predict = toy.make(config)

    def measure(state, key):
        return {"test_loss": jnp.mean((predict(state["params"], toy.DATA) - toy.DATA[:, 0]) ** 2)}

    return loop.fit(
        step,
        init,
        num_steps=steps,
        seed_keys=seeds.keys(seed, num_seeds),
        folder=folder,
        description="toy",
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        batches=batches,
        evaluation=loop.Evaluation(measure, every=30),
        map_seeds=map_seeds,
    ).state


def assert_same(a, b):
    plain = [checkpoints.named_arrays(x) for x in (a, b)]
    for name in plain[0] | plain[1]:
        np.testing.assert_array_equal(plain[0][name], plain[1][name], err_msg=name)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_is_bit_identical(tmp_path, streamed):
    whole = fit(tmp_path / "whole", streamed=streamed)
    fit(tmp_path / "parts", steps=40, streamed=streamed)
    resumed = fit(tmp_path / "parts", streamed=streamed)
    assert_same(whole, resumed)


def test_metrics_of_an_interrupted_run_equal_those_of_a_whole_one(tmp_path):
    fit(tmp_path / "whole")
    fit(tmp_path / "parts", steps=40)
    path = tmp_path / "parts" / "metrics.jsonl"
    # What a kill leaves: lines after the checkpoint, the last of them cut short.
    path.write_text(path.read_text() + '{"step": 50, "loss": [9, 9]}\n{"step": 60, "lo')
    fit(tmp_path / "parts")
    rows = metrics.read(path)
    wanted = metrics.read(tmp_path / "whole" / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    assert trained == [row for row in wanted if "loss" in row]
    assert [row["step"] for row in trained] == [10, 20, 30, 40, 50, 60]


def test_a_finished_training_is_only_read(tmp_path):
    first = fit(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert_same(first, fit(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_the_result_does_not_depend_on_where_dispatches_end(tmp_path):
    assert_same(fit(tmp_path / "a", log_every=10), fit(tmp_path / "b", log_every=7))


@pytest.mark.parametrize("num_seeds, map_seeds", [(1, False), (3, False), (3, True)])
def test_each_seed_starts_from_what_it_is_given(tmp_path, num_seeds, map_seeds):
    given = {"w": jnp.arange(2.0 * num_seeds).reshape(num_seeds, 2)}

    def run():
        return loop.fit(
            lambda state, batch, key: (state + 1, {"loss": jnp.sum(state)}),
            lambda key, start: start["w"],
            num_steps=4,
            seed_keys=seeds.keys(0, num_seeds),
            folder=tmp_path / "run",
            description="start",
            log_every=2,
            checkpoint_every=2,
            map_seeds=map_seeds,
            start=given,
        ).state

    np.testing.assert_array_equal(run(), given["w"] + 4)
    # A finished training is read, not begun again.
    np.testing.assert_array_equal(run(), given["w"] + 4)


def test_one_program_for_all_dispatches(tmp_path):
    compiled = []

    class Count(logging.Handler):
        def emit(self, record):
            if "Compiling" in record.getMessage() and "many_steps" in record.getMessage():
                compiled.append(record)

    handler = Count()
    logging.getLogger("jax").addHandler(handler)
    try:
        with jax.log_compiles():
            fit(tmp_path, steps=55, log_every=20, checkpoint_every=30)
    finally:
        logging.getLogger("jax").removeHandler(handler)
    assert len(compiled) == 1


def test_seeds_are_independent_of_their_company(tmp_path):
    together = fit(tmp_path / "three", num_seeds=3)
    alone = fit(tmp_path / "one", num_seeds=1, seed=2)
    for a, b in zip(together["params"], alone["params"], strict=True):
        np.testing.assert_allclose(a[2], b[0], rtol=2e-5, atol=2e-6)
    assert not np.allclose(together["params"][0][0], together["params"][0][1])


def test_seeds_one_after_the_other_equal_seeds_side_by_side(tmp_path):
    beside = fit(tmp_path / "vmap", num_seeds=3)
    after = fit(tmp_path / "map", num_seeds=3, map_seeds=True)
    for a, b in zip(beside["params"], after["params"], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_each_seed_can_have_its_own_data(tmp_path):
    data = np.stack([np.full((4, 1), value, np.float32) for value in (1.0, 5.0)])
    state = loop.fit(
        lambda state, batch, key: (state + batch.mean(), {"loss": batch.mean()}),
        lambda key: jnp.zeros(()),
        num_steps=3,
        seed_keys=seeds.keys(0, 2),
        folder=tmp_path,
        description="sum",
        log_every=2,
        checkpoint_every=3,
        batches=loop.Resident(data, lambda d, key, step: d, per_seed=True),
    ).state
    np.testing.assert_array_equal(state, [3.0, 15.0])


@pytest.mark.parametrize("streamed", [False, True])
def test_nan_in_the_data_names_the_step_and_the_metric(tmp_path, streamed):
    with pytest.raises(UserError, match=r"loss is not finite at step 48\b"):
        fit(tmp_path, poison=47, streamed=streamed)
    # The last checkpoint before is whole and holds no NaN.
    stored = checkpoints.read_values(tmp_path / "checkpoints")
    assert all(np.isfinite(v).all() for v in stored.values() if v.dtype.kind == "f")
    assert metrics.read(tmp_path / "metrics.jsonl")[-1]["step"] == 40


def test_a_stream_that_fails_stops_the_run_with_its_own_error(tmp_path):
    def fetch(step):
        if step == 5:
            raise UserError("picture 5 is damaged")
        return np.ones((2,), np.float32)

    with pytest.raises(UserError, match="picture 5 is damaged"):
        loop.fit(
            lambda state, batch, key: (state, {"loss": batch.sum()}),
            lambda key: jnp.zeros(()),
            num_steps=9,
            seed_keys=seeds.keys(0, 1),
            folder=tmp_path,
            description="stream",
            log_every=2,
            checkpoint_every=4,
            batches=loop.Streamed(fetch),
        )


def test_tensorboard_events_are_written(tmp_path):
    fit(tmp_path)
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    assert b"test_loss" in events.read_bytes()


def newest(folder):
    return max((folder / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))


def damage(folder, how):
    files = [p for p in newest(folder).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    if how == "truncate":
        largest.write_bytes(content[: len(content) // 2])
    elif how == "flip":
        middle = len(content) // 2
        largest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "empty":
        for file in files:
            file.write_bytes(b"")
    elif how == "vanish":
        largest.unlink()
    elif how == "digest":
        (about,) = (p for p in files if b"digest" in p.read_bytes())
        stored = json.loads(about.read_text())
        about.write_text(json.dumps(stored | {"digest": "0" * 64}))


@pytest.mark.parametrize("how", ["truncate", "flip", "empty", "vanish", "digest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, how, capsys):
    whole = fit(tmp_path / "whole", ballast=5000)
    fit(tmp_path / "parts", steps=40, ballast=5000)
    damage(tmp_path / "parts", how)
    resumed = fit(tmp_path / "parts", ballast=5000)
    printed = capsys.readouterr()
    assert "40 is damaged" in printed.err
    assert "resuming at step 20 of 60" in printed.out
    assert_same(whole, resumed)
    # Nothing was deleted.
    assert (tmp_path / "parts" / "damaged" / "checkpoints-40").is_dir()


def test_without_a_whole_checkpoint_the_run_stops(tmp_path):
    fit(tmp_path, steps=20)
    damage(tmp_path, "empty")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; --overwrite"):
        fit(tmp_path)
    assert newest(tmp_path).name == "20"


def test_a_checkpoint_of_another_shape_is_not_loaded(tmp_path):
    fit(tmp_path, steps=20)
    with pytest.raises(UserError, match="--overwrite"):
        fit(tmp_path, widths=(7, 3))


def test_checkpoints_have_readable_names(tmp_path):
    fit(tmp_path, steps=20)
    stored = checkpoints.read_values(tmp_path / "checkpoints")
    assert stored["params.0"].shape == (2, 5, 4)
    assert stored["key"].dtype == np.uint32


def test_two_states_differ_in_digest():
    a = {"x": np.zeros(3, np.float32)}
    variants = [
        {"x": np.zeros(3, np.float64)},
        {"x": np.zeros((3, 1), np.float32)},
        {"y": np.zeros(3, np.float32)},
        {"x": np.array([0, 0, np.nextafter(np.float32(0), 1)], np.float32)},
    ]
    digests = {checkpoints.digest(v) for v in [a, *variants]}
    assert len(digests) == 5
    assert checkpoints.digest({"x": np.zeros(3, np.float32)}) == checkpoints.digest(a)
