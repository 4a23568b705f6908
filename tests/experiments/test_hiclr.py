"""The HiCLR binary: methods, one step, options, protocols, resume, bad input."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from asym import contrastive, numerics
from experiments.common import app, checkpoints, files, metrics, report
from experiments.common.nets import stgcn
from experiments.hiclr import claims, finetuning, main, settings, sources, training

# Compiler options for the whole process would outlast these tests.
EXPERIMENT = dataclasses.replace(main.EXPERIMENT, xla_flags=())
SHORT = ["--preset=smoke", "--num_seeds=2"]


def run(workdir, *words, experiment=EXPERIMENT):
    return app.run(experiment, ["hiclr", *SHORT, f"--workdir={workdir}", *words])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Those that the demand is about; a step of every method runs below."""
    workdir = tmp_path_factory.mktemp("compared")
    chosen = {m: settings.METHODS[m] for m in ("random", "hiclr")}
    experiment = dataclasses.replace(EXPERIMENT, methods=chosen)
    words = ["--compare", "--probe_every=2", "--protocols=linear"]
    assert run(workdir, *words, experiment=experiment) == 0
    return workdir, files.read_json(workdir / "results.json")


def test_compare_measures_by_seed(compared):
    workdir, results = compared
    assert list(settings.METHODS) == list(training.RECIPES)
    for measured in results["methods"].values():
        assert set(measured) == {"probe", "knn", "linear"}
        assert all(len(values["per_seed"]) == 2 for values in measured.values())
    steps, curve = metrics.curve(workdir / "train_hiclr_joint" / "metrics.jsonl", "probe")
    assert list(steps) == [0, 2, 4]
    # The probe of the curves and of the table is the same; before training it is random's.
    assert results["methods"]["hiclr"]["probe"]["per_seed"] == pytest.approx(list(curve[-1]))
    assert results["methods"]["random"]["probe"]["per_seed"] == pytest.approx(list(curve[0]))
    assert not (workdir / "train_random_joint" / "metrics.jsonl").exists()


def test_every_acceptance_item_is_a_claim(compared):
    _, results = compared
    judged = results["claims"]
    assert judged[0]["statement"] == report.PARITY
    exact = judged[1:11]
    assert all(c["holds"] is True for c in exact), exact
    assert [c["relation"] for c in exact].count(">") == 1
    assert "2 trained seeds" in exact[0]["note"]
    # Four steps are not what the gain is demanded of.
    gain = judged[11]
    assert gain["statement"] == "logistic probe: hiclr minus random"
    assert gain["holds"] is None
    assert gain["measured"] is not None


def test_three_seeds_of_the_quick_setting_are_judged():
    config = EXPERIMENT.settings("quick")
    levels = {m: 0.5 for m in settings.METHODS} | {"hiclr": 0.56}
    outcomes = {
        m: app.Outcome({name: np.full(3, level) for name in ("probe", "knn")})
        for m, level in levels.items()
    }
    gain, *others = claims._effects(config, outcomes)
    assert (gain.threshold, gain.holds) == (0.05, True)
    # No order among the trained methods is demanded.
    assert len(others) == 10
    assert all(c.holds is None for c in others)
    outcomes["hiclr"] = outcomes["random"]
    assert claims._effects(config, outcomes)[0].holds is False
    other = dataclasses.replace(config, steps=150)
    assert claims._effects(other, outcomes)[0].holds is None


def test_a_wrong_direction_breaks_the_claims():
    broken = {c.statement for c in claims.asymmetry([], "hiclr_symmetric") if not c.holds}
    assert broken >= {"largest |d(L_1 + L_2)/dz_basic|", "largest |dL_2/dz_normal|"}


def test_the_figures_are_drawn(compared):
    workdir, results = compared
    assert results["figures"] == ["hiclr.png", "views.png"]
    for name in results["figures"]:
        with Image.open(workdir / "figures" / name) as picture:
            assert picture.width > 1000


@functools.cache
def prepared(**options):
    config = EXPERIMENT.settings("smoke", **options)
    source = sources.open_source(config)
    return config, source, training.Learner(config, source, config.stream)


def embeddings(seed=0, count=3):
    rng = np.random.default_rng(seed)
    views = [jnp.asarray(rng.normal(size=(6, 8)), jnp.float32) for _ in range(count)]
    keys = numerics.normalize(jnp.asarray(rng.normal(size=(6, 8)), jnp.float32))
    queue = numerics.normalize(jnp.asarray(rng.normal(size=(8, 20)), jnp.float32), axis=0)
    return views, keys, queue


def test_each_method_descends_its_own_objective():
    views, keys, queue = embeddings()
    logits = [
        contrastive.queue_logits(query=v, key=keys, queue=queue, normalize=True) for v in views
    ]
    log_p = [jax.nn.log_softmax(x, axis=1) for x in logits]

    def cross_entropy(target, student):
        return float(-jnp.mean(jnp.sum(jnp.exp(log_p[target]) * log_p[student], axis=1)))

    info = [float(-jnp.mean(p[:, 0])) for p in log_p]
    chain = (cross_entropy(0, 1) + cross_entropy(1, 2)) / 2
    expected = {
        "skeletonclr": info[0],
        "aimclr": info[0] + cross_entropy(0, 1),
        "hiclr": info[0] + chain,
        "naive_strong": sum(info) / 3,
        "hiclr_flat": info[0] + (cross_entropy(0, 1) + cross_entropy(0, 2)) / 2,
        "hiclr_symmetric": info[0] + chain,
        "hiclr_reverse": info[0] + (cross_entropy(1, 0) + cross_entropy(2, 1)) / 2,
    }
    assert set(expected) == set(settings.METHODS) - {"random"}
    moving = {}
    for method, value in expected.items():
        _, _, learner = prepared(method=method)
        count = training.RECIPES[method][0]

        def loss(views, learner=learner):
            return learner.objective(views, keys, queue, jnp.int32(0))[0]

        found, slopes = jax.value_and_grad(loss)(views[:count])
        assert float(found) == pytest.approx(value, rel=1e-5), method
        moving[method] = [bool(jnp.any(slope)) for slope in slopes]
    # The reverse direction leaves the strongest view where it is.
    assert moving.pop("hiclr_reverse") == [True, True, False]
    assert all(all(m) for m in moving.values())


def test_mining_begins_beyond_its_epoch():
    views, keys, queue = embeddings()
    _, _, learner = prepared(method="hiclr", mining_epoch=2, epochs=9, steps=0, topk=2)
    found = [learner.objective(views, keys, queue, jnp.int32(e))[1] for e in (2, 3)]
    before, after = (np.asarray(parts.positive_mask.sum(axis=1)) for parts in found)
    assert np.all(before == 1)
    assert np.all((after >= 3) & (after <= 7))
    # A run that ends before never looks for neighbours.
    _, _, short = prepared(method="hiclr", mining_epoch=2)
    assert not short._mines
    assert learner._mines


@pytest.fixture(scope="module")
def one_step():
    config, source, learner = prepared(method="hiclr", momentum=0.9)
    before = jax.jit(learner.init)(jax.random.key(0))
    # As after some training: the key encoder is behind.
    slow = jax.tree.map(lambda x: x + 0.01, before.key_params)
    before = before._replace(key_params=slow, pointer=jnp.int32(56))
    batch = source.batches.sample(source.train.x, jax.random.key(1), jnp.int32(0))
    after, details = jax.jit(learner.advance)(before, batch, jax.random.key(2))
    return config, learner, before, after, details


def test_a_step_follows_the_order_of_the_paper(one_step):
    config, _, before, after, details = one_step
    # The key encoder follows the query encoder of before this step.
    expected = jax.tree.map(
        lambda slow, fast: 0.9 * slow + 0.1 * fast, before.key_params, before.params["network"]
    )
    for found, wanted in zip(
        jax.tree.leaves(after.key_params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    # Contrasted with the queue of before; then the keys take the place of the oldest ones.
    places = (56 + np.arange(config.batch_size)) % config.queue_size
    np.testing.assert_array_equal(np.asarray(after.queue).T[places], details.keys)
    kept = np.setdiff1d(np.arange(config.queue_size), places)
    np.testing.assert_array_equal(np.asarray(after.queue)[:, kept], before.queue[:, kept])
    assert int(after.pointer) == (56 + config.batch_size) % config.queue_size
    np.testing.assert_allclose(np.linalg.norm(details.keys, axis=1), 1, rtol=1e-5)
    assert details.loss.logits.shape == (3, config.batch_size, 1 + config.queue_size)


def test_statistics_follow_three_query_batches_and_one_key_batch(one_step):
    _, _, before, after, _ = one_step

    def mean(rest):
        return np.asarray(rest["encoder"]["data_norm"]["mean"].get_value())

    assert not mean(before.rest).any()
    assert mean(after.rest).any()
    assert not np.array_equal(mean(after.rest), mean(after.key_rest))
    # 1 - 0.9^3 of the way to the data's own mean after three batches, 1 - 0.9 after one.
    ratio = np.linalg.norm(mean(after.rest)) / np.linalg.norm(mean(after.key_rest))
    assert 1.5 < ratio < 4.5


def test_everything_decays_and_before_the_momentum():
    config, source, learner = prepared(method="hiclr", weight_decay=0.5, lr_drop_epoch=0)
    params = {"norm": jnp.ones(3), "masked": jnp.float32(2)}
    state = learner._optimizer.init(params)
    rest = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(learner._optimizer.update)
    # Momentum 0.9 adds up what has decayed before; beyond epoch 0 the step size is a tenth.
    sums = np.cumsum(0.9 ** np.arange(4)) * 0.5 * config.learning_rate
    sums[source.steps_per_epoch :] /= 10
    for total in sums:
        updates, state = update(rest, state, params)
        for name, value in params.items():
            np.testing.assert_allclose(updates[name], -total * value, rtol=1e-5)


def trained_one_step(**options):
    config = EXPERIMENT.settings("smoke", **options)
    source = sources.open_source(config)
    learner = training.Learner(config, source, config.stream)
    state = jax.jit(learner.init)(jax.random.key(0))
    same = jax.tree.map(jnp.array_equal, state.params["network"], state.key_params)
    assert all(jax.tree.leaves(same)) is (config.key_init == "copy")
    batch = source.batches.sample(source.train.x, jax.random.key(1), jnp.int32(5))
    after, told = jax.jit(learner.step)(state, batch, jax.random.key(2))
    assert all(np.isfinite(value) for value in told.values())
    expected = {"loss", "info_nce", "consistency_normal", "consistency_strong"}
    assert set(told) == expected | {f"gradient_{v}" for v in ("basic", "normal", "strong")}
    return after


def test_other_options_train():
    after = trained_one_step(
        method="naive_strong",
        strong_aug="adain",
        growing=False,
        stream="motion",
        persons=2,
        bfloat16=True,
        key_init="independent",
        kernel_init="normal",
        mining_epoch=0,
        epochs=9,
        steps=0,
    )
    assert not after.params["masked"].any()


def test_the_full_encoder_gets_dropout_and_random_edges(monkeypatch):
    # Two blocks in place of ten, which take long to compile; the ten are in the golden parity.
    def blocks(hidden_channels, hidden_dim, dropout):
        return stgcn.BlockSpec(hidden_channels), stgcn.BlockSpec(hidden_dim, 2, dropout)

    monkeypatch.setattr(stgcn, "ten_blocks", blocks)
    drawn = []

    def random_edges(key, adjacency, *, drop_edges, add_edges):
        drawn.append((drop_edges, add_edges))
        return original(key, adjacency, drop_edges=drop_edges, add_edges=add_edges)

    original = stgcn.random_edges
    monkeypatch.setattr(stgcn, "random_edges", random_edges)
    after = trained_one_step(
        method="hiclr", strong_aug="mask+dae", encoder="full", hidden_dim=4, stream="bone"
    )
    assert after.params["masked"].any()
    # The strong view alone has other edges, drawn anew in both blocks.
    assert drawn.count((0.1, 0.05)) == 2
    assert set(drawn) == {(0.0, 0.0), (0.1, 0.05)}


def test_a_resumed_run_is_bit_identical(tmp_path):
    words = ["--method=skeletonclr", "--steps=6"]
    folder = tmp_path / "train_skeletonclr_joint"
    assert run(tmp_path, *words) == 0
    expected = checkpoints.read_values(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_text()
    measured = files.read_json(tmp_path / "results.json")["methods"]
    # As if it had been killed after the last checkpoint but one.
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "outcomes")
    shutil.rmtree(folder / "checkpoints" / "6")
    assert run(tmp_path, *words) == 0
    found = checkpoints.read_values(folder / "checkpoints")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    assert (folder / "metrics.jsonl").read_text() == lines
    assert files.read_json(tmp_path / "results.json")["methods"] == measured


def test_fine_tuning_starts_from_the_trained_encoder():
    config, source, learner = prepared(method="hiclr")
    pretrained = learner.init(jax.random.key(3))
    tuner = finetuning.Finetuner(config, source, "joint", 1.0)
    state = tuner.init(jax.random.key(4), pretrained)
    for part, wanted in (
        (state.params, pretrained.params["network"]),
        (state.rest, pretrained.rest),
    ):
        jax.tree.map(np.testing.assert_array_equal, part["encoder"], wanted["encoder"])
    assert tuner.num_steps == config.finetune_epochs * source.steps_per_epoch
    # All weights learn.
    batch = tuner.batches.sample(tuner.batches.data, jax.random.key(0), jnp.int32(0))
    step = jax.jit(tuner.step)
    losses = []
    for _ in range(8):
        state, told = step(state, batch, jax.random.key(5))
        losses.append(float(told["loss"]))
    assert losses[-1] < losses[0]
    learnt = state.params["encoder"], pretrained.params["network"]["encoder"]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), *learnt)
    assert sum(jax.tree.leaves(changed)) > 0.8 * len(jax.tree.leaves(changed))


def test_few_labels_are_balanced_and_come_often():
    labels = np.repeat([0, 1, 2], [100, 40, 5])
    kept = finetuning.labelled(labels, 0.1)
    assert [int(np.sum(labels[kept] == c)) for c in range(3)] == [10, 4, 1]
    assert len(set(kept)) == len(kept)
    np.testing.assert_array_equal(finetuning.labelled(labels, 1.0), np.arange(145))
    config, source, _ = prepared(method="hiclr")
    tuner = finetuning.Finetuner(config, source, "joint", 0.25)
    batch = tuner.batches.sample(tuner.batches.data, jax.random.key(0), jnp.int32(0))
    # Twelve clips, one of each class, fill batches of sixteen.
    assert len(batch.y) == config.batch_size > len(tuner.batches.data.y) == 12
    assert tuner.num_steps == config.finetune_epochs * source.steps_per_epoch


def test_the_step_size_of_fine_tuning_warms_up_and_falls_twice():
    config, source, _ = prepared(method="hiclr", finetune_epochs=70, protocols=("finetune",))
    rate = finetuning.schedule(70 * source.steps_per_epoch, config.finetune_rate)
    epochs = {0: 0.02 / 3, 5: 0.1, 29: 0.1, 31: 0.01, 54: 0.01, 56: 0.001}
    for epoch, expected in epochs.items():
        assert float(rate(jnp.int32(epoch * 3))) == pytest.approx(expected, rel=1e-4), epoch


def test_the_better_weights_of_the_streams_are_kept():
    # Bone outvotes motion at 0.6 against 0.4, not at equal weights.
    joint = np.array([[[0.0, 0.0]] * 2])
    motion = np.array([[[0.0, 1.1]] * 2])
    bone = np.array([[[1.0, 0.0]] * 2])
    logits = jnp.asarray(np.stack([joint, motion, bone]))
    np.testing.assert_array_equal(main.ensemble(logits, jnp.array([0, 0])), [1.0])
    np.testing.assert_array_equal(main.ensemble(logits, jnp.array([1, 1])), [1.0])
    np.testing.assert_array_equal(main.ensemble(logits, jnp.array([0, 1])), [0.5])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method=byol"], "choose one of"),
        (["--stream=velocity"], "choose one of"),
        (["--mask_ratio=1.5"], "at most 1"),
        (["--batch_size=49"], "--batch_size=49: there are 48"),
        (["--batch_size=65"], "the queue holds"),
        (["--topk=65"], "the queue holds"),
        (["--data_dir=/nowhere"], "reads no folder"),
        (["--dataset=msr_action3d"], "needs --data_dir"),
        (["--dataset=msr_action3d", "--data_dir=/nowhere"], "file not found"),
        (["--dataset=ntu", "--data_dir=/nowhere"], "train_position.npy"),
        (["--dataset=ntu", "--data_dir=/nowhere", "--persons=2"], "--persons needs"),
        (["--align"], "--align needs"),
        (["--dropout=0.1"], "--dropout needs"),
        (["--dropout_graph=0.2"], "--dropout_graph needs"),
        (["--adain_per_frame"], "--adain_per_frame needs"),
        (["--strong_aug=dae", "--mask_ratio=0.5"], "--mask_ratio needs"),
        (["--method=skeletonclr", "--mask_ratio=0.5"], "--mask_ratio needs"),
        (["--method=random", "--steps=9"], "--steps needs"),
        (["--linear_epochs=3"], "--linear_epochs needs"),
        (["--protocols=linear", "--finetune_rate=1"], "--finetune_rate needs"),
        (["--protocols=transfer"], "choose one of"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, words, told, capsys):
    assert run(tmp_path, *words) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]
