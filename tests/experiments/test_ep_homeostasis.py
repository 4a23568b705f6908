"""The binary of equilibrium propagation: methods, options, data, resume, warnings, bad input."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from asym import equilibrium
from experiments.common import app, checkpoints, files, plots, report
from experiments.ep_homeostasis import (
    bias,
    claims,
    figures,
    main,
    model,
    monitors,
    optimizers,
    settings,
    sources,
    table,
    training,
)

# Eight steps.
SHORT = ["--preset=smoke", "--num_seeds=2", "--batch_size=700", "--t_free=8", "--t_nudge=4"]
SHORT += ["--epochs=4"]
SMALL = {"hidden": (8, 6), "batch_size": 20, "t_free": 8, "t_nudge": 4, "epochs": 2}


def run(workdir, *words, experiment=main.EXPERIMENT):
    return app.run(experiment, ["ep_homeostasis", *SHORT, f"--workdir={workdir}", *words])


def error_lines(capsys):
    return [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two methods at two angles; the others take their steps below."""
    workdir = tmp_path_factory.mktemp("compared")
    chosen = {m: settings.METHODS[m] for m in ("ep", "ep_homeo")}
    experiment = dataclasses.replace(main.EXPERIMENT, methods=chosen)
    assert run(workdir, "--compare", "--angles=90,0", experiment=experiment) == 0
    return workdir, files.read_json(workdir / "results.json")


def test_compare_trains_the_methods_at_their_angles(compared):
    workdir, results = compared
    named = {settings.CUSTOM, *settings.METHODS, *settings.FURTHER}
    assert named == set(settings.RECIPES)
    trained = sorted(p.name for p in workdir.glob("train_*"))
    expected = ["ep_0", "ep_90", "ep_homeo_0", "ep_homeo_90"]
    assert trained == [f"train_{name}" for name in expected]
    measured = results["methods"]
    for metrics in measured.values():
        assert len(metrics["accuracy"]["per_seed"]) == 2
        monitored = {"cos_l1", "cos_l2", "symmetry", "angle", "residual", "accuracy_angle0"}
        assert monitored <= set(metrics)
    assert measured["ep"]["angle"]["mean"] > 45
    assert measured["ep"]["cos_l1"]["per_seed"] != measured["ep_homeo"]["cos_l1"]["per_seed"]


def test_every_acceptance_item_is_a_claim(compared):
    _, results = compared
    judged = results["claims"]
    assert judged[0]["statement"] == report.PARITY
    # What does not depend on the training is left to the other presets.
    assert "left to the other presets" in judged[1]["note"]
    assert all(c["holds"] is None for c in judged)
    by_statement = {c["statement"]: c["measured"] for c in judged}
    assert by_statement["accuracy of ep_homeo minus ep"] is not None
    assert by_statement["accuracy of ep_homeo minus bp"] is None


def test_the_demands_on_learning_are_those_of_the_calibrated_setting():
    metrics = ("accuracy", "cos_l1", "symmetry", "accuracy_angle0")
    low, high = np.zeros(5), np.array([0.1, 0.1, 0.1, 9.0, 9.0])
    outcomes = {
        m: app.Outcome({k: high if m.endswith("homeo") else low for k in metrics})
        for m in ("ep", "ep_homeo", "bp", "loop", "loop_homeo")
    }
    quick = main.EXPERIMENT.settings("quick", num_seeds=5)
    found = {c.statement: c for c in claims.learning(quick, outcomes)}
    accuracy = found["accuracy of ep_homeo minus ep"]
    # Three seeds are judged, whatever the others say.
    assert (accuracy.measured, accuracy.relation, accuracy.threshold) == (
        pytest.approx(0.1),
        ">=",
        0.08,
    )
    assert accuracy.holds is True
    cosine = found["cosine of errors in layer 1, ep_homeo minus ep"]
    assert (cosine.threshold, cosine.holds) == (0.4, False)
    assert found["looped wiring: symmetry of J with homeostasis"].threshold == 0.9
    # The gain on the looped wiring is not to be asserted.
    assert found["accuracy of loop_homeo minus loop"].threshold is None
    other = main.EXPERIMENT.settings("quick", num_seeds=5, epochs=16)
    assert all(c.threshold is None for c in claims.learning(other, outcomes))


def test_the_figures_are_drawn(compared):
    workdir, results = compared
    assert results["figures"] == ["ep_homeostasis.png"]
    with Image.open(workdir / "figures" / "ep_homeostasis.png") as picture:
        assert picture.width > 1000


def test_the_bias_falls_with_the_power_of_the_phases():
    betas, phases = (0.05, 0.1, 0.2), (1, 2)
    with jax.enable_x64(True):
        found = bias.biases(bias.random_network("dsilu"), phases, betas)
    assert found.relative.shape == (2, 3)
    np.testing.assert_allclose(bias.slopes(found, betas), phases, atol=0.1)


def test_the_bias_is_drawn_with_the_predicted_slopes(monkeypatch):
    relative = np.outer(10.0 ** -np.arange(len(bias.PHASES)), np.array(bias.BETAS))
    made = bias.Biases(relative, relative, relative)
    monkeypatch.setattr(bias, "table", lambda act: made)
    _, axes = plots.new(1)
    figures.biases(axes[0, 0], "dsilu")
    dots, lines = axes[0, 0].lines[::2], axes[0, 0].lines[1::2]
    assert len(dots) == len(lines) == len(bias.PHASES)
    for n, dot, line in zip(bias.PHASES, dots, lines, strict=True):
        exponent = np.polyfit(np.log(bias.BETAS), np.log(line.get_ydata()), 1)[0]
        assert exponent == pytest.approx(n)
        assert line.get_ydata()[0] == pytest.approx(dot.get_ydata()[0])


def test_the_table_is_a_run_of_its_own(tmp_path):
    chosen = {"ep": table.METHODS["ep"]}
    experiment = dataclasses.replace(table.EXPERIMENT, methods=chosen)
    assert list(table.METHODS) == ["ep", "ep_homeo", "bp"]
    assert run(tmp_path, "--compare", "--angles=0", experiment=experiment) == 0
    results = files.read_json(tmp_path / "results.json")
    assert results["figures"] == ["table.png"]
    assert results["command"].startswith("python -m experiments.ep_homeostasis.table")
    assert all(c["threshold"] is None for c in results["claims"])


def learner_of(method, **options):
    own = settings.RECIPES[method].keys() - options.keys()
    chosen = {k: v for k, v in SMALL.items() if k not in own} | options
    config = settings.resolved(main.EXPERIMENT.settings("smoke", method=method, **chosen))
    source = sources.open_source(config)
    return training.Learner(config, source, config.angles[0])


@jax.jit
def distance(a, b):
    parts = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b)
    return jnp.sqrt(jax.tree.reduce(jnp.add, parts))


def descend(learner, steps=3):
    """States before and after a few steps on one batch, and the losses on the way."""
    source = learner.source
    batch = source.batches.sample(source.batches.data, jax.random.key(0), jnp.int32(0))
    before = state = jax.jit(learner.init)(jax.random.key(1))
    step = jax.jit(learner.step)
    losses = []
    for _ in range(steps):
        state, told = step(state, batch, jax.random.key(2))
        losses.append(float(told["loss"]))
    return before, state, losses


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bp", {"loss": "mse", "optimizer": "sgd", "learning_rate": 0.05}),
        ("rbp", {"reset": False}),
        ("neumann", {"dataset": "teacher", "damping": 0.5}),
        ("ep_n4", {"act": "dsilu", "optimizer": "sgd_cos", "learning_rate": 0.05}),
        ("ep_online", {"beta": 0.2, "turns": 1}),
        ("ep_homeo_exact", {"optimizer": "adamw", "weight_decay": 0.1}),
        ("loop_homeo", {"homeo_draws": 2, "optimizer": "adamw_cos"}),
        ("bp_homeo", {"dtype": "bfloat16"}),
        ("custom", {"algo": "hep", "n_phases": 1, "homeo_coef": 0.0, "angles": (30.0,)}),
    ],
)
def test_every_rule_and_option_descends(method, options):
    _, _, losses = descend(learner_of(method, **({"learning_rate": 1e-2} | options)), steps=6)
    assert losses[-1] < losses[0]


def test_all_rules_agree_on_symmetric_weights_at_rest_and_on_no_others():
    """Their gradients are one and the same there, so one step of plain descent is."""
    rest = {"t_free": 60, "t_nudge": 30, "act": "dsilu", "optimizer": "sgd"}
    rest |= {"learning_rate": 1.0, "momentum": 0.0}
    learners = {m: learner_of(m, **rest) for m in ("bp", "ep", "rbp")}
    source = learners["bp"].source
    batch = source.batches.sample(source.batches.data, jax.random.key(0), jnp.int32(0))
    steps = {m: jax.jit(learner.step) for m, learner in learners.items()}
    free = jax.jit(learners["bp"].init)(jax.random.key(1))
    tied = free._replace(params=model.rotate(free.params, 0.0))

    def far(state, method, other):
        first, second = (steps[m](state, batch, jax.random.key(2))[0] for m in (method, other))
        moved = distance(state.params, second.params)
        return float(distance(first.params, second.params) / moved)

    assert far(tied, "ep", "bp") < 1e-3
    assert far(tied, "rbp", "bp") < 1e-3
    assert far(free, "rbp", "bp") < 1e-3
    assert far(free, "ep", "bp") > 0.05


def test_kolen_pollack_makes_weights_symmetric():
    learner = learner_of("ep_kolen_pollack")
    before, after, _ = descend(learner, steps=1)
    decay = 1 - settings.RECIPES["ep_kolen_pollack"]["kp_decay"]
    for forward, backward in model.reciprocal_pairs(before.params):
        # Adam turns equal gradients into equal steps, so the difference only decays.
        differences = [
            np.asarray(s.params[forward]["kernel"] - s.params[backward]["kernel"].T)
            for s in (before, after)
        ]
        np.testing.assert_allclose(differences[1], decay * differences[0], atol=1e-6)


def test_without_a_reset_the_next_batch_starts_where_the_last_ended():
    learner = learner_of("ep", reset=False, t_free=1)
    source = learner.source
    batch = source.batches.sample(source.batches.data, jax.random.key(0), jnp.int32(0))
    step = jax.jit(learner.step)
    once, _ = step(jax.jit(learner.init)(jax.random.key(1)), batch, jax.random.key(2))
    twice, _ = step(once, batch, jax.random.key(2))
    x = jnp.asarray(batch.inputs)
    expected = equilibrium.next_states(learner.field, once.params, once.states, x=x)
    for layer, states in twice.states.items():
        np.testing.assert_allclose(states, expected[layer], rtol=1e-5, atol=1e-6)


def test_damping_ends_an_orbit():
    """A ring of three with gain -1.2 each way around overshoots; half a step at a time it rests."""
    wires = {"in-l1": (0.0, 1.1), "l1-l2": (1.2, -0.1), "l2-out": (1.2, -0.1), "out-l1": (-1.2, 0)}
    params = {}
    for name, (weight, bias_value) in wires.items():
        params[name] = {"kernel": jnp.full((1, 1), weight)}
        if model.is_forward(name):
            params[name]["bias"] = jnp.full(1, bias_value)
    x = jnp.zeros((1, 1))
    residuals = []
    for damping in (1.0, 0.5):
        learner = learner_of("loop", damping=damping, t_free=200)
        residual = jax.jit(lambda x, n=learner: n.residual(params, n.free_states(params, x), x))
        residuals.append(float(residual(x)[0]))
    assert residuals[0] > 0.1
    assert residuals[1] < 1e-3


def test_a_resumed_run_is_bit_identical(tmp_path):
    words = ["--method=ep_homeo", "--checkpoint_every=3"]
    folder = tmp_path / "train_ep_homeo_90"
    assert run(tmp_path, *words) == 0
    expected = checkpoints.read_values(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_text()
    numbers = files.read_json(tmp_path / "results.json")["methods"]
    # As if it had been killed after the last checkpoint but one.
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "outcomes")
    saved = sorted(p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == ["6", "8"]
    shutil.rmtree(folder / "checkpoints" / "8")
    assert run(tmp_path, *words) == 0
    found = checkpoints.read_values(folder / "checkpoints")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    assert (folder / "metrics.jsonl").read_text() == lines
    assert files.read_json(tmp_path / "results.json")["methods"] == numbers


def test_a_bad_circle_is_told(capsys):
    """The phases of a wide circle do not settle, those of a narrow one do."""
    told = []
    for beta in (2.0, 0.01):
        learner = learner_of("ep_n4", beta=beta, t_free=100, t_nudge=60)
        params = jax.tree.map(lambda w: w[None], jax.jit(learner.init)(jax.random.key(0)).params)
        monitors.warn_of_circle(learner, params, learner.source.test, "here")
        told.append(capsys.readouterr().err)
    assert "warning: here: " in told[0]
    assert told[1] == ""


@pytest.mark.parametrize(
    ("log_residual", "defect", "n", "told"),
    [
        (-2.0, 0.0, 4, "do not come to rest"),
        (-6.0, 0.3, 4, "leaves the domain of convergence"),
        (-6.0, 0.3, 2, ""),
        (-6.0, 0.01, 8, ""),
    ],
)
def test_what_the_warning_says(log_residual, defect, n, told):
    problem = monitors.circle_problem(log_residual, defect, n)
    assert told in problem
    assert bool(problem) is bool(told)


def test_accuracy_counts_every_example_once(monkeypatch):
    """The last chunk is filled up; what fills it must count as nothing."""
    monkeypatch.setattr(monitors, "_CHUNK", 7)
    learner = learner_of("ep")
    params = jax.jit(learner.init)(jax.random.key(0)).params
    test = sources.Examples(*(part[:17] for part in learner.source.test))
    found = jax.jit(lambda p: monitors._accuracies(learner, p, test))(params)

    @jax.jit
    def at_once(params, x):
        u = learner.free_states(params, x)
        activities = equilibrium.activate(learner.field, u)
        return learner.predictions(params, activities), learner.residual(params, u, x)

    chosen, residual = at_once(params, jnp.asarray(test.images))
    assert found["accuracy"] == pytest.approx(float(np.mean(chosen == test.labels)))
    assert found["residual"] == pytest.approx(float(residual.mean()), rel=1e-4)


def test_step_sizes_and_decay_by_layer():
    names = ("in-conv1", "conv2-conv1", "conv2-conv3", "out-conv3", "readout")
    assert [optimizers.layer_factor("sgd_cos", n) for n in names] == [25, 15, 10, 8, 5]
    assert [optimizers.layer_factor("adam", n) for n in names] == [1] * 5
    options = {"arch": "cnn", "dataset": "images32", "optimizer": "sgd_cos", "learning_rate": 0.1}
    options |= {"weight_decay": 0.01, "momentum": 0.5}
    config = main.EXPERIMENT.settings("smoke", **options)
    rule = optimizers.make(config, num_steps=2)
    params = {"in-conv1": {"kernel": jnp.ones(1)}, "readout": {"Dense_0": {"kernel": jnp.ones(1)}}}
    state = rule.init(params)
    gradient = jax.tree.map(jnp.zeros_like, params)
    found = []
    for _ in range(3):
        updates, state = rule.update(gradient, state, params)
        found.append([float(x[0]) for x in jax.tree.leaves(updates)])
    # Coupled decay, twice for the readout; momentum; the cosine falls to half, then to nothing.
    decays, factors = np.array([0.01, 0.02]), np.array([25, 5])
    np.testing.assert_allclose(found[0], -0.1 * factors * decays, rtol=1e-5)
    np.testing.assert_allclose(found[1], -0.05 * factors * 1.5 * decays, rtol=1e-5)
    np.testing.assert_allclose(found[2], 0, atol=1e-7)
    assert optax.apply_updates(params, updates).keys() == params.keys()


def test_pictures_are_mirrored_and_shifted_within_a_black_border():
    count = 64
    ramp = jnp.broadcast_to(jnp.arange(1, 33, dtype=jnp.uint8)[:, None], (count, 32, 32, 3))
    made = np.asarray(jax.jit(sources.augmented)(jax.random.key(0), ramp))
    assert made.shape == ramp.shape
    assert made.dtype == np.uint8
    row = made[:, 16, :, 0].astype(int)
    mirrored = row[:, 16] < row[:, 15]
    assert 16 < mirrored.sum() < 48
    upright = np.where(mirrored[:, None], row[:, ::-1], row)
    shift = upright[:, 16] - 17
    assert set(shift) == {-2, -1, 0, 1, 2}
    wanted = np.arange(1, 33) + shift[:, None]
    np.testing.assert_array_equal(upright, np.where((wanted < 1) | (wanted > 32), 0, wanted))


def test_made_sets_hold_all_classes_evenly():
    teacher, drawings = sources.teacher(500), sources.drawings(200)
    assert np.bincount(teacher.labels).min() > 25
    assert np.bincount(drawings.labels, minlength=10).min() >= 8
    assert drawings.images.shape == (200, 32, 32, 3)
    again = sources.drawings(200)
    np.testing.assert_array_equal(again.images, drawings.images)


def test_all_digits_are_used_once_in_an_epoch():
    config = main.EXPERIMENT.settings("smoke", batch_size=479, epochs=2)
    source = sources.open_source(config)
    assert (source.steps_per_epoch, len(source.test.labels)) == (3, 360)
    for epoch in range(2):
        labels = [
            source.batches.sample(source.batches.data, jax.random.key(0), 3 * epoch + i).labels
            for i in range(3)
        ]
        expected = np.bincount(source.batches.data.examples.labels)
        np.testing.assert_array_equal(np.bincount(np.concatenate(labels)), expected)


@pytest.fixture(scope="module")
def convolutional():
    """Words for the binary with convolutions as small as they can be, a few steps."""
    words = ["--arch=cnn", "--act=dsilu", "--width_mult=0.024", "--batch_size=8", "--limit=16"]
    words += ["--num_seeds=1", "--angles=0", "--t_free=4", "--t_nudge=2", "--epochs=2"]
    return [*words, "--method=ep_homeo", "--optimizer=sgd_cos"]


def test_convolutions_train_on_drawings(tmp_path, convolutional, monkeypatch):
    made = sources.drawings(76)
    monkeypatch.setattr(sources, "drawings", lambda count: made)
    monkeypatch.setattr(sources, "_split", lambda e, n, split=sources._split: split(e, 16))
    assert run(tmp_path, *convolutional, "--dataset=images32") == 0
    measured = files.read_json(tmp_path / "results.json")["methods"]["ep_homeo"]
    assert {"cos_conv1", "cos_conv3", "angle"} <= set(measured)
    # The dense Jacobian of so many units is not made.
    assert "symmetry" not in measured


DATA = os.environ.get("ASYM_DATA_DIR", "")


def prepared(name):
    folder = Path(DATA) / "tfds"
    return pytest.mark.skipif(
        not DATA or not (folder / name).is_dir(), reason=f"ASYM_DATA_DIR names no tfds/{name}"
    )


def few_test_pictures(monkeypatch):
    """Reading and testing on ten thousand pictures is not what is looked at."""
    read = sources.data.tfds_arrays
    monkeypatch.setattr(
        sources.data, "tfds_arrays", lambda name, split, folder, most: read(name, split, folder, 60)
    )


def test_methods_that_are_not_compared_are_not_checked():
    chosen = main.EXPERIMENT.settings("cnn_quick", data_dir="data")
    assert chosen.methods == ("ep", "ep_homeo", "bp")


@prepared("cifar10")
def test_convolutions_take_steps_on_cifar10(tmp_path, convolutional, monkeypatch):
    few_test_pictures(monkeypatch)
    words = ["--dataset=cifar10", f"--data_dir={DATA}/tfds"]
    assert run(tmp_path, *convolutional, *words) == 0
    measured = files.read_json(tmp_path / "results.json")["methods"]["ep_homeo"]
    assert 0 <= measured["accuracy"]["mean"] <= 1


@prepared("mnist")
def test_a_few_steps_on_mnist(tmp_path, monkeypatch):
    few_test_pictures(monkeypatch)
    words = ["--dataset=mnist", f"--data_dir={DATA}/tfds", "--limit=40", "--batch_size=20"]
    assert run(tmp_path, *words, "--method=ep_homeo") == 0
    log = (tmp_path / "train_ep_homeo_90" / "metrics.jsonl").read_text()
    assert '"step": 4' in log or '"step":4' in log
    results = files.read_json(tmp_path / "results.json")
    assert results["methods"]["ep_homeo"]["accuracy"]["mean"] >= 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method=clip"], "choose one of"),
        (["--methods=ep,clip"], "--methods=clip: choose among ep, ep_homeo"),
        (["--method=bp", "--n_phases=4"], "--method=custom takes it"),
        (["--method=custom", "--algo=bp", "--n_phases=4"], "has no nudges"),
        (["--method=custom", "--algo=online_hep"], "--n_phases of 2 or more"),
        (["--method=ep_online", "--noreset"], "no free states"),
        (["--method=loop", "--angles=0"], "no reciprocal pair"),
        (["--angles=90,90"], "each angle once"),
        (["--hidden=8"], "two layers"),
        (["--arch=cnn"], "needs --arch=recip or loop"),
        (["--dataset=images32"], "needs --arch=cnn"),
        (["--dataset=images32", "--arch=cnn", "--homeo_draws=0", "--act=dsilu"], "too large"),
        (["--dataset=images32", "--arch=cnn", "--methods=ep,ep_homeo_exact"], "too large"),
        (["--dataset=mnist"], "needs --data_dir"),
        (["--dataset=mnist", "--data_dir=/nowhere"], "/nowhere"),
        (["--data_dir=/nowhere"], "reads no folder"),
        (["--batch_size=1438"], "there are 1437"),
        (["--damping=0"], "at least 0.01"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, words, told, capsys):
    assert run(tmp_path, *words) == 2
    (line,) = error_lines(capsys)
    assert told in line
