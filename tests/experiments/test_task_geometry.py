"""The binary of task geometry: tasks, networks, measures, resume, bad input."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from asym import activations, similarity
from experiments.common import app, checkpoints, files, report, seeds
from experiments.task_geometry import (
    claims,
    main,
    measures,
    network,
    pictures,
    settings,
    splits,
    tasks,
    theory,
    training,
)

# One program for most tests: four nonlinearities, tasks of four conditions, four steps an epoch.
CHOSEN = ("tanh", "relu", "relu_ub1", "relu_ub2")
SHORT = ["--preset=smoke", "--num_bits=2", "--num_targets=1"]


def run(workdir, *words, experiment=main.EXPERIMENT):
    return app.run(experiment, ["task_geometry", *SHORT, f"--workdir={workdir}", *words])


@pytest.fixture(scope="module")
def few():
    """The experiment with four nonlinearities."""
    methods = {name: settings.METHODS[name] for name in CHOSEN}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "METHODS", methods)
        yield dataclasses.replace(main.EXPERIMENT, methods=methods)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, few):
    workdir = tmp_path_factory.mktemp("compared")
    assert run(workdir, "--compare", experiment=few) == 0
    return workdir, files.read_json(workdir / "results.json")


def test_all_nonlinearities_are_trained_in_one_program(compared):
    workdir, results = compared
    assert list(results["methods"]) == list(CHOSEN)
    assert [p.name for p in workdir.iterdir() if (p / "metrics.jsonl").exists()] == ["train"]
    state = checkpoints.read_values(workdir / "train" / "checkpoints")
    # Seeds, tasks, nonlinearities, widths, inputs, units.
    assert state["params.hidden.0.kernel"].shape == (2, 3, 4, 1, 100, 16)
    for measured in results["methods"].values():
        assert len(measured["target_alignment"]["per_seed"]) == 2
    aligned = [m["target_alignment"]["mean"] for m in results["methods"].values()]
    assert len(set(aligned)) == 4


def test_every_acceptance_item_is_a_claim(compared):
    _, results = compared
    judged = results["claims"]
    assert judged[0]["statement"] == report.PARITY
    assert all(c["holds"] is True for c in judged[1:6]), judged[1:6]
    # At smoke size the demands are not judged; tasks that the run has are reported.
    assert all(c["holds"] is None for c in judged[6:])
    assert [c["measured"] is not None for c in judged[6:8]] == [True, True]
    assert "no such task" in judged[8]["note"]
    assert len(judged) == 22


def test_the_demands_are_those_of_the_acceptance(monkeypatch):
    monkeypatch.setattr(claims, "identities", list)
    cells = tasks.list_cells(main.EXPERIMENT.settings("quick"))
    config = main.EXPERIMENT.settings("quick", compare=True)
    shape = 5, len(cells), 1

    def outcome(target, inputs):
        arrays = {name: np.zeros(shape) for name in (*measures.OF_KERNEL, *measures.OF_POINTS)}
        arrays |= {"target_alignment": np.full(shape, target)}
        arrays |= {"input_alignment": np.full(shape, inputs)}
        curves = {f"curve/{n}": np.stack([arrays[n]] * 30, axis=1) for n in measures.OF_KERNEL}
        return app.Outcome({}, arrays | curves)

    outcomes = {
        "tanh": outcome(0.9, 0.3),
        "relu": outcome(0.6, 0.7),
        "relu_ub1": outcome(0.65, 0.5),
        "relu_ub2": outcome(0.62, 0.5),
    }
    found = claims.claims(dataclasses.replace(config, preset="smoke"), outcomes)[1:]
    assert [(c.relation, c.threshold) for c in found] == [
        *[(">=", 0.2)] * 2,
        *[(">=", 0.08), (">=", 0.15), (">", 0.0)] * 2,
        *[("<=", 0.05)] * 3,
        (">=", 0.1),
        *[(">", 0.0)] * 4,
    ]
    assert [c.measured for c in found[:3]] == pytest.approx([0.3, 0.4, 0.3])
    assert [c.holds for c in found] == [
        *[True] * 2,
        *[True, False, False] * 2,
        *[False] * 3,
        *[False, True, True, False, False],
    ]
    # Another noise, another training: reported.
    other = dataclasses.replace(config, preset="smoke", input_noise=0.1)
    assert {c.holds for c in claims.claims(other, outcomes)[1:]} == {None}


def test_figures_are_drawn(compared):
    workdir, results = compared
    assert results["figures"] == ["mechanism.png", "plane.png", "separability.png"]
    for name in results["figures"]:
        with Image.open(workdir / "figures" / name) as picture:
            assert picture.width > 400


def test_a_resumed_run_is_bit_identical(compared, few, tmp_path):
    workdir, results = compared
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    # As if it had been killed after the first checkpoint.
    (copy / "results.json").unlink()
    shutil.rmtree(copy / "outcomes")
    folder = copy / "train" / "checkpoints"
    assert {p.name for p in folder.iterdir() if p.name.isdigit()} == {"4", "8"}
    expected = checkpoints.read_values(folder)
    shutil.rmtree(folder / "8")
    assert run(copy, "--compare", experiment=few) == 0
    found = checkpoints.read_values(folder)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    again = files.read_json(copy / "results.json")
    assert again["methods"] == results["methods"]


def small(**options):
    """Settings, source and learner of a run of seconds."""
    base = {"num_seeds": 2, "num_train": 60, "batch_size": 16, "epochs": 2, "widths": (8,)}
    config = main.EXPERIMENT.settings("smoke", **(base | options))
    source = tasks.open_source(config)
    return config, source, training.Learner(config, source)


def trained(source, learner, steps=6):
    """One seed before and after a few steps, and the losses."""
    drawn = jax.tree.map(lambda x: x[0], source.tasks)
    data = source.batches.data
    if source.batches.per_seed:
        data = jax.tree.map(lambda x: x[0], data)
    first = jax.jit(learner.init)(jax.random.key(0), drawn)

    @jax.jit
    def step(state, at):
        return learner.step(state, source.batches.sample(data, None, at), None)

    state, losses = first, []
    for at in range(steps):
        state, told = step(state, jnp.int32(at))
        losses.append(float(told["loss"]))
    return first, state, losses


@pytest.mark.parametrize(
    "options",
    [
        {"task": "xor", "readout_weights": "binary", "optimizer": "rms", "method": "softplus"},
        {"task": "patterns", "widths": (4, 8), "depth": 2, "init": "uniform"},
        {"task": "digits", "network": "conv", "readout": "trained", "optimizer": "adam"},
    ],
)
def test_every_task_and_option_trains(options):
    rate = 0.1 if options.get("optimizer", "sgd") == "sgd" else 3e-3
    _, source, learner = small(learning_rate=rate, **options)
    first, last, losses = trained(source, learner, steps=8)
    assert losses[-1] < losses[0]
    readouts = first.params["readout"].kernel, last.params["readout"].kernel
    assert np.array_equal(*readouts) is (options.get("readout") != "trained")
    if "widths" in options:
        # The padded units of a narrow network stay silent.
        hidden = learner.network.hidden(last.params, last.tasks.probes)[-1]
        assert not hidden[:, :, 0, :, 4:].any()
        assert hidden[:, :, 1, :, 4:].any()


def test_random_tasks_are_drawn_for_each_seed():
    options = {"num_bits": (2,), "num_targets": (1,), "separability": (0.5,)}
    spectra = main.EXPERIMENT.settings("smoke", scale=0.5, **options)
    kernels = main.EXPERIMENT.settings("smoke", task="kernel", max_rank=2, **options)

    def draw(config, key):
        drawn = tasks.draw_tasks(key, config, tasks.list_cells(config), 100)
        found = drawn.means[0] @ drawn.means[0].T / 100
        return found, similarity.cka(found, drawn.targets[0] @ drawn.targets[0].T)

    both = jax.jit(jax.vmap(lambda key: [draw(config, key) for config in (spectra, kernels)]))

    for found, alignment in both(seeds.keys(0, 2)):
        np.testing.assert_allclose(alignment, 0.5 / np.sqrt(3), atol=1e-5)
        assert np.abs(found[0] - found[1]).max() > 0.05


def test_training_descends_along_the_gradient_by_hand():
    """The loss is averaged over outputs, the gradient is summed."""
    config, source, learner = small(
        num_bits=(3,), num_targets=(3,), separability=(0.5,), method="relu"
    )
    first, after, losses = trained(source, learner, steps=1)
    data = jax.tree.map(lambda x: x[0], source.batches.data)
    batch = source.batches.sample(data, None, jnp.int32(0))
    cell = 0
    condition = np.asarray(tasks.conditions(batch.place, first.tasks.counts))[cell]
    x = np.asarray(first.tasks.means)[cell, condition] + np.asarray(batch.inputs)
    y = np.asarray(first.tasks.targets)[cell, condition]
    kernel, bias = (np.asarray(p)[cell, 0, 0] for p in first.params["hidden"][0])
    readout, offset = (np.asarray(p)[cell, 0, 0] for p in first.params["readout"])
    inside = x @ kernel + bias
    logits = np.maximum(inside, 0) @ readout + offset
    gradient = activations.hidden_gradient(
        inputs=jnp.asarray(x),
        slope=activations.RELU.derivative(jnp.asarray(inside)),
        error=jnp.asarray(y) - jax.nn.sigmoid(logits),
        readout=jnp.asarray(readout),
    )
    moved = [np.asarray(p)[cell, 0, 0] for p in after.params["hidden"][0]]
    rate = config.learning_rate
    np.testing.assert_allclose(moved[0] - kernel, -rate * gradient.weights, atol=2e-6)
    np.testing.assert_allclose(moved[1] - bias, -rate * gradient.bias, atol=2e-6)
    mean = np.mean(np.logaddexp(0, logits) - y * logits)
    assert losses[0] == pytest.approx(mean, rel=1e-5)


def test_one_epoch_sees_each_sample_once():
    _, source, _ = small(task="patterns")
    data = jax.tree.map(lambda x: x[0], source.batches.data)
    assert source.steps_per_epoch == 4
    seen, weights, last = [], [], []
    for at in range(8):
        batch = source.batches.sample(data, None, jnp.int32(at))
        there = np.asarray(batch.weight) > 0
        seen.append(np.asarray(batch.place)[there])
        weights.append(float(batch.weight.sum()))
        last.append(bool(batch.last))
    assert [len(s) for s in seen] == [16, 16, 16, 12] * 2
    assert weights == pytest.approx([1] * 8)
    assert last == [False, False, False, True] * 2
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert set(first) == set(second) == set(np.asarray(data.place))
    assert not np.array_equal(first, second)


def test_inputs_have_their_alignment_and_noise():
    _, source, _ = small(num_targets=(1,), separability=(0.5, 1.0), num_train=4000)
    drawn = jax.tree.map(np.asarray, source.tasks)
    for number, cell in enumerate(source.cells):
        count, k = cell.num_conditions, cell.num_targets
        means, labels = drawn.means[0, number, :count], drawn.targets[0, number, :count, :k]
        found = similarity.linear_cka(jnp.asarray(means), jnp.asarray(labels))
        c = cell.separability * similarity.largest_alignment(count - 1, k)
        assert found == pytest.approx(c, abs=1e-5)
        # Each condition has variance D / N in all, of the spectrum that sums to 1.
        assert (means**2).sum(axis=1) == pytest.approx(100, rel=1e-4)
    assert source.batches.data.inputs.std() == pytest.approx(1, rel=0.01)
    assert source.test.std() == pytest.approx(0.5, rel=0.05)
    condition = tasks.conditions(source.batches.data.place[0], source.tasks.counts[0])
    shares = [np.bincount(row) / 4000 for row in np.asarray(condition)]
    np.testing.assert_allclose(shares[0], 1 / 4, atol=0.03)
    np.testing.assert_allclose(shares[-1], 1 / 8, atol=0.03)


def test_initial_weights_have_their_spread():
    config = main.EXPERIMENT.settings("smoke", widths=(64, 256), depth=2)
    made = {
        init: jax.jit(
            network.Network(
                (activations.RELU,), dataclasses.replace(config, init=init), 1, 100, 2
            ).init
        )(jax.random.key(0))
        for init in ("normal", "uniform")
    }
    for name, spread in (("normal", 1.0), ("uniform", 3**-0.5)):
        first, second = (np.asarray(layer.kernel)[0, 0] for layer in made[name]["hidden"])
        assert first.std() == pytest.approx(spread / 10, rel=0.03)
        assert second[0, :64, :64].std() == pytest.approx(spread / 8, rel=0.05)
        assert second[1].std() == pytest.approx(spread / 16, rel=0.03)
    binary = dataclasses.replace(config, readout_weights="binary")
    made = network.Network((activations.RELU,), binary, 1, 100, 2)
    readout = jax.jit(made.init)(jax.random.key(0))
    kernel = np.asarray(readout["readout"].kernel)[0, 0]
    assert set(np.unique(kernel[1])) == {np.float32(-1 / 16), np.float32(1 / 16)}
    np.testing.assert_array_equal(kernel.sum(axis=1), 0)


def test_convolutions_are_those_of_jax():
    config = main.EXPERIMENT.settings(
        "smoke", task="digits", network="conv", readout="trained", method="relu"
    )
    side, channels = 8, 3
    made = network.Network((activations.RELU,), config, 1, side**2 * channels, 2, (side, channels))
    params = jax.jit(made.init)(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(1, 4, side**2 * channels)).astype(np.float32)
    layers = jax.jit(made.hidden)(params, jnp.asarray(x))
    pictures_in = jnp.asarray(x.reshape(4, side, side, channels))
    for layer, found in zip(params["conv"], layers, strict=False):
        kernel = layer.kernel[0, 0, 0].reshape(5, 5, pictures_in.shape[-1], 16)
        convolved = jax.lax.conv_general_dilated(
            pictures_in, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        active = jax.nn.relu(convolved + layer.bias[0, 0, 0])
        pooled = jax.lax.reduce_window(
            active, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        np.testing.assert_allclose(found[0, 0, 0], pooled.reshape(4, -1), atol=1e-5)
        pictures_in = pooled
    assert len(layers) == 3


def test_splits_and_dichotomies():
    labels = [1, 1, 0, 0, 1, 1, 0, 0]
    found = splits.generalisation_splits(labels)
    assert found.shape == (18, 4)
    assert np.all((found == 2).any(axis=1))
    assert len(splits.balanced_dichotomies(4)) == 3
    eight = splits.balanced_dichotomies(8)
    assert len(np.unique(eight, axis=0)) == 35
    np.testing.assert_array_equal(eight.sum(axis=1), 4)
    many = splits.balanced_dichotomies(32)
    assert many.shape == (100, 32)
    np.testing.assert_array_equal(many.sum(axis=1), 16)
    np.testing.assert_array_equal(many, splits.balanced_dichotomies(32))
    assert splits.generalisation_splits(np.arange(16) % 2).shape == (100, 8)


def test_measures_of_networks_that_copy_their_inputs():
    """With the identity and orthogonal weights, the hidden geometry is that of the inputs."""
    config, source, learner = small(
        num_bits=(2,), num_targets=(1,), method="identity", widths=(100,), test_noise=0.0
    )
    drawn = source.tasks
    state = jax.vmap(learner.init)(seeds.keys(0, 2), drawn)
    kernel = jnp.broadcast_to(jnp.eye(100), state.params["hidden"][0].kernel.shape)
    bias = jnp.zeros_like(state.params["hidden"][0].bias)
    params = state.params | {"hidden": [network.Affine(kernel, bias)]}
    found = measures.Geometry(learner, source, config).measure(state._replace(params=params), 0)
    np.testing.assert_allclose(found["input_alignment"], 1, atol=1e-5)
    expected = np.array([0, 0.5, 1]) / np.sqrt(3)
    np.testing.assert_allclose(found["alignment"], [expected] * 2, atol=1e-5)
    np.testing.assert_allclose(found["target_alignment"][..., 0], found["alignment"], atol=1e-5)
    # Three equal components at the largest alignment, two without the target's own.
    np.testing.assert_allclose(found["dimension"][:, 2, 0], 3, rtol=1e-4)
    np.testing.assert_allclose(found["dimension"][:, 0, 0], 2, rtol=1e-4)
    np.testing.assert_allclose(found["shattering"][:, 2], 1)
    np.testing.assert_allclose(found["mean/input_alignment"], 1, atol=1e-5)
    assert found["curve/parallelism"].shape == (2, 2, 3, 1)


def test_snapshots():
    np.testing.assert_array_equal(training.snapshot_epochs(30), np.arange(1, 31))
    np.testing.assert_array_equal(training.snapshot_epochs(2), [1, 2])
    many = training.snapshot_epochs(1000)
    assert len(many) <= 30
    assert many[-1] == 1000


def test_the_first_push_is_asymmetric():
    tanh, relu = theory.first_push("tanh"), theory.first_push("relu")
    up = relu.weights[:, 1] > np.abs(relu.weights[:, 0]) + 1e-6
    # A ReLU unit hears its own class alone; a tanh unit hears both classes and all conditions.
    np.testing.assert_allclose(relu.push[up], [[0, 0.25]] * up.sum(), atol=1e-6)
    silent = (np.abs(relu.weights) < 1e-6).all(axis=1)
    np.testing.assert_array_equal(relu.push[silent], 0)
    np.testing.assert_allclose(tanh.push[silent], [[0, 0.5]], atol=1e-6)
    # Two conditions of one class push a ReLU unit half as far as all four push a tanh unit at rest.
    assert np.linalg.norm(relu.push, axis=1).max() <= 0.25 + 1e-6


def test_pictures_without_noise(tmp_path):
    train, test = pictures.read("digits", "", 0)
    assert (len(train.labels), len(test.labels)) == (900, 897)
    probes, decoded = pictures.by_class(test, np.zeros(64), 10)
    assert probes.shape[0] % 10 == 0
    assert decoded.shape == (100, 64)
    known = {image.tobytes(): label for image, label in zip(*test, strict=True)}
    as_pictures = decoded.astype(np.float32).reshape(-1, 8, 8, 1)
    found = [known[image.tobytes()] for image in as_pictures]
    assert found == list(np.repeat(np.arange(10), 10))
    together = {p.tobytes() for p in probes} & {p.tobytes() for p in decoded}
    assert len(together) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method=sine"], "choose one of"),
        (["--num_bits=1"], "at least 2"),
        (["--num_bits=2,2"], "there twice"),
        (["--num_targets=4"], "2 bits have 3 dichotomies"),
        (["--num_targets=3"], "have one alignment"),
        (["--separability=1.5"], "at most 1"),
        (["--dim=3"], "at least as many dimensions"),
        (["--max_rank=2"], "setting of --task=kernel"),
        (["--data_dir=/nowhere"], "reads no folder"),
        (["--network=conv"], "needs pictures"),
        (["--widths=7", "--readout_weights=binary"], "even --widths"),
        (["--task=xor"], "--num_bits is a setting"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, words, told, capsys):
    assert run(tmp_path, *words) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task=xor", "--dim=100"], "multiple of 3"),
        (["--task=xor", "--scale=0.5"], "--scale is a setting"),
        (["--task=patterns", "--separability=0.5"], "--separability is a setting"),
        (["--task=digits", "--dim=9"], "their own size"),
        (["--task=digits", "--num_train=901"], "there are 900"),
        (["--task=digits", "--test_samples=500"], "--test_samples=500"),
        (["--task=cifar10"], "needs --data_dir"),
        (["--task=cifar10", "--data_dir=/nowhere"], "not found"),
    ],
)
def test_bad_input_of_other_tasks(tmp_path, words, told, capsys):
    command = ["task_geometry", "--preset=smoke", f"--workdir={tmp_path}", *words]
    if "--task=digits" in words and "--num_train=901" not in words:
        command.append("--num_train=60")
    assert app.run(main.EXPERIMENT, command) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]


DATA = os.environ.get("ASYM_DATA_DIR", "")


@pytest.mark.skipif(
    not DATA or not (Path(DATA) / "tfds" / "cifar10").is_dir(),
    reason="ASYM_DATA_DIR names no folder with tfds/cifar10",
)
def test_cifar10_is_read():
    train, test = pictures.read("cifar10", f"{DATA}/tfds", 500)
    assert train.images.shape == (500, 32, 32, 3)
    assert len(test.labels) == 10_000
    assert 0.3 < train.images.mean() < 0.6
