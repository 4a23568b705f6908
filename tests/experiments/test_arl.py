"""The ARL binary: methods, heads, data sources, resume, bad input."""

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from asym import fusion
from experiments.arl import claims, data, main, methods, model, sources, theory, training
from experiments.common import app, checkpoints, files, metrics, report, seeds
from experiments.common import data as bundled

# One step an epoch.
SHORT = ["--preset=smoke", "--num_seeds=2", "--batch_size=900"]


def run(workdir, *words):
    return app.run(main.EXPERIMENT, ["arl", *SHORT, f"--workdir={workdir}", *words])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The methods that are claimed about, and one of a single modality; others run below."""
    workdir = tmp_path_factory.mktemp("compared")
    chosen = {m: methods.METHODS[m] for m in (*claims.NEEDED, "unimodal_a")}
    experiment = dataclasses.replace(main.EXPERIMENT, methods=chosen)
    assert app.run(experiment, ["arl", *SHORT, "--compare", f"--workdir={workdir}"]) == 0
    return workdir, files.read_json(workdir / "results.json")


def test_compare_runs_the_methods(compared):
    _, results = compared
    assert list(methods.METHODS) == list(methods.RECIPES)
    assert len(results["methods"]) == 7
    for method, measured in results["methods"].items():
        assert len(measured["accuracy"]["per_seed"]) == 2
        assert ("accuracy_visual" in measured) is not methods.is_unimodal(method)
    accuracies = [tuple(m["accuracy"]["per_seed"]) for m in results["methods"].values()]
    assert len(set(accuracies)) > 4


def test_every_acceptance_item_is_a_claim(compared):
    _, results = compared
    judged = results["claims"]
    assert judged[0]["statement"] == report.PARITY
    assert all(c["holds"] is True for c in judged[1:10]), judged[1:10]
    assert [(c["relation"], c["threshold"]) for c in judged[10:14]] == [
        (">=", 0.08),
        (">=", 0.5),
        ("<", 0.3),
        ("<", 0.0),
    ]
    assert all(c["measured"] is not None for c in judged[10:])
    # The effect of the strengths has no verdict, and less than ten seeds are said to be few.
    assert all(c["holds"] is None and "10 seeds" in c["note"] for c in judged[14:])
    assert "accuracy of ARL minus uniform" in [c["statement"] for c in judged[14:]]


def test_five_seeds_are_judged_and_all_are_reported():
    config = main.EXPERIMENT.settings("smoke", num_seeds=7, compare=True)
    outcomes = {
        m: app.Outcome({k: np.arange(7.0) for k in ("accuracy", "accuracy_visual", "gap")})
        for m in claims.NEEDED
    }
    found = {}
    for c in claims.claims(config, outcomes):
        found.setdefault(c.statement, []).append(c)
    first, whole = found["visual branch of joint"]
    assert (first.measured, first.holds, first.note) == (2.0, False, "first 5 of 7 seeds")
    assert (whole.measured, whole.holds, whole.note) == (3.0, None, "all 7 seeds")
    # Other data than the demands were made for is only reported, once.
    other = main.EXPERIMENT.settings("smoke", num_seeds=7, compare=True, noise_audio=0.25)
    (only,) = [c for c in claims.claims(other, outcomes) if c.statement == "visual branch of joint"]
    assert (only.measured, only.holds) == (3.0, None)


def test_the_figure_is_drawn(compared):
    workdir, results = compared
    assert results["figures"] == ["arl.png"]
    with Image.open(workdir / "figures" / "arl.png") as picture:
        assert picture.width > 1000


def test_the_second_setting_is_what_its_flags_say(tmp_path, monkeypatch):
    monkeypatch.setitem(main.EVEN, "epochs", 2)
    both, flags = tmp_path / "both", tmp_path / "flags"
    assert run(both, "--method=unimodal_v", "--even_set") == 0
    results = files.read_json(both / "results.json")
    measured = results["methods"]["unimodal_v"]
    assert set(measured) == {"accuracy", "accuracy_even"}
    # Without its rivals a method is not judged.
    assert all(c["measured"] is None for c in results["claims"][10:])
    words = ["--noise_audio=0.25", "--noise_visual=0.5", "--visual_scale=1"]
    assert run(flags, "--method=unimodal_v", *words) == 0
    alone = files.read_json(flags / "results.json")["methods"]["unimodal_v"]
    assert measured["accuracy_even"] == alone["accuracy"]
    assert measured["accuracy"] != alone["accuracy"]


@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "sum", "T": 4.0, "entropy_floor": 0.0},
        {"fusion": "share", "gamma": 0.0, "start": 0},
        {"fusion": "gated", "decay_epochs": (1,), "momentum": 0.0, "weight_decay": 0.0},
        {"fusion": "film", "clip_norm": 0.1, "noise_visual": 0.0, "visual_scale": 1.0},
        {"method": "grad_boost_a5", "fusion": "concat"},
    ],
)
def test_every_head_and_option_trains(options):
    config = main.EXPERIMENT.settings("smoke", **({"method": "arl"} | options))
    source = sources.open_source(config, seeds.keys(0, 1))
    learner = training.Learner(config, source)
    one = jax.tree.map(lambda x: x[0], source.batches.data)
    batch = source.batches.sample(one, jax.random.key(0), jnp.int32(source.steps_per_epoch))
    state = learner.init(jax.random.key(1))
    step = jax.jit(learner.step)
    losses = []
    for _ in range(8):
        state, told = step(state, batch, jax.random.key(2))
        losses.append(float(told["loss"]))
    assert losses[-1] < losses[0]
    if options["fusion"] == "film":
        assert float(told["gradient_norm"]) > config.clip_norm


def test_a_resumed_run_is_bit_identical_and_averages_the_last_epochs(tmp_path):
    words = ["--method=ogm_ge", "--batch_size=300", "--epochs=7", "--log_every=3"]
    words += ["--checkpoint_every=18"]
    folder = tmp_path / "train_ogm_ge"
    assert run(tmp_path, *words) == 0
    expected = checkpoints.read_values(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_text()
    gap = files.read_json(tmp_path / "results.json")["methods"]["ogm_ge"]["gap"]["per_seed"]
    steps, values = metrics.curve(folder / "metrics.jsonl", "gap")
    assert list(steps) == list(range(3, 22, 3))
    np.testing.assert_allclose(gap, values[-5:].mean(axis=0), rtol=1e-5)
    # As if it had been killed after the last checkpoint but one.
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "outcomes")
    saved = {p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()}
    assert saved == {"18", "21"}
    shutil.rmtree(folder / "checkpoints" / "21")
    assert run(tmp_path, *words) == 0
    found = checkpoints.read_values(folder / "checkpoints")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    assert (folder / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method=clip"], "choose one of"),
        (["--fusion=late"], "choose one of"),
        (["--entropy_floor=0.6"], "at most 0.5"),
        (["--batch_size=901"], "--batch_size=901: there are 900"),
        (["--data_dir=/nowhere"], "reads no folder"),
        (["--dataset=crema_d"], "needs --data_dir"),
        (["--dataset=crema_d", "--data_dir=/nowhere"], "needs --encoder=resnet18"),
        (["--dataset=crema_d", "--encoder=resnet18", "--data_dir=/nowhere"], "train.npz"),
        (["--dataset=crema_d", "--encoder=resnet18", "--data_dir=/x", "--even_set"], "even_set"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, words, told, capsys):
    assert run(tmp_path, *words) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]


@pytest.fixture(scope="module")
def updates():
    """How far one step moves the weights, by method, after the start and before it."""
    keys = seeds.keys(0, 1)
    options = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 1e9, "learning_rate": 1.0}
    config = main.EXPERIMENT.settings("smoke", method="arl", start=1, **options)
    source = sources.open_source(config, keys)
    one = jax.tree.map(lambda x: x[0], source.batches.data)
    learner = training.Learner(config, source)
    state = jax.jit(learner.init)(jax.random.key(1))
    step = jax.jit(learner.step)

    def moved(method, epoch=1, by=step):
        recipe = methods.RECIPES[method].arrays()
        batch = source.batches.sample(one, jax.random.key(2), jnp.int32(0))
        batch = batch._replace(recipe=recipe, epoch=jnp.int32(epoch))
        after, told = by(state, batch, jax.random.key(3))
        difference = jax.tree.map(
            lambda a, b: np.asarray(b - a),
            (state.encoders, state.head),
            (after.encoders, after.head),
        )
        return difference, told

    noisy = training.Learner(main.EXPERIMENT.settings("smoke", method="ogm_ge", **options), source)
    return moved, lambda: moved("ogm_ge", by=jax.jit(noisy.step))


def assert_scaled(encoders, plain, factor):
    for modality, times in zip(("audio", "visual"), factor, strict=True):
        for found, expected in zip(
            jax.tree.leaves(encoders[modality]), jax.tree.leaves(plain[modality]), strict=True
        ):
            # The difference of weights before and after keeps few digits of a small update.
            np.testing.assert_allclose(found, times * expected, rtol=1e-3, atol=3e-7)


def test_methods_scale_what_they_say(updates):
    moved, _ = updates
    (plain, head), _ = moved("aux_only")
    (joint, joint_head), _ = moved("joint")
    for method, unscaled in (
        ("uniform", (plain, head)),
        ("arl", (plain, head)),
        ("balanced", (plain, head)),
        ("arl_no_aux", (joint, joint_head)),
        ("grad_boost_a5", (joint, joint_head)),
    ):
        (encoders, own_head), told = moved(method)
        strength = float(told["k_audio"]), float(told["k_visual"])
        assert_scaled(encoders, unscaled[0], [1 + k for k in strength])
        np.testing.assert_array_equal(own_head["head"].kernel, unscaled[1]["head"].kernel)
        expected = {"uniform": (0.5, 0.5), "grad_boost_a5": (4.0, 0.0)}.get(method)
        if expected:
            assert strength == expected
        else:
            assert sum(strength) == pytest.approx(1)
            assert abs(strength[0] - strength[1]) > 0.01


def test_the_start_has_gamma_one_and_no_scaling(updates):
    moved, _ = updates
    before, told = moved("arl", epoch=0)
    assert (told["k_audio"], told["k_visual"]) == (0, 0)
    plain, _ = moved("aux_only", epoch=0)
    jax.tree.map(np.testing.assert_array_equal, before, plain)
    losses = [float(moved("aux_only", epoch)[1]["loss"]) for epoch in (0, 1)]
    joint = float(moved("joint")[1]["loss"])
    # gamma is 1, then 4.
    assert losses[1] - joint == pytest.approx(4 * (losses[0] - joint), rel=1e-5)


def test_one_modality_leaves_the_other_alone(updates):
    moved, _ = updates
    for method, idle in (("unimodal_a", "visual"), ("unimodal_v", "audio")):
        (encoders, _), _ = moved(method)
        assert all(not x.any() for x in jax.tree.leaves(encoders[idle]))
        other = {"visual": "audio", "audio": "visual"}[idle]
        assert any(x.any() for x in jax.tree.leaves(encoders[other]))


def test_ogm_ge_changes_kernels_and_leaves_biases_and_the_head(updates):
    moved, ogm = updates
    (plain, head), _ = moved("joint")
    (noisy, own_head), _ = ogm()
    np.testing.assert_allclose(own_head["head"].kernel, head["head"].kernel, atol=1e-7)
    for found, expected in zip(jax.tree.leaves(noisy), jax.tree.leaves(plain), strict=True):
        if found.ndim == 1:
            np.testing.assert_allclose(found, expected, atol=1e-7)
        else:
            # Noise as large as the gradient itself, and at most a slower gradient under it.
            slope = np.sum(found * expected) / np.sum(expected**2)
            rest = (found - slope * expected).std() / expected.std()
            assert rest == pytest.approx(1, abs=0.1)
            assert -0.2 < slope < 1.2


def test_ogm_ge_slows_down_the_better_modality_alone():
    config = main.EXPERIMENT.settings("smoke", method="ogm_ge", ogm_alpha=0.5)
    learner = training.Learner(config, sources.open_source(config, seeds.keys(0, 1)))
    # Constant gradients have no deviation and so get no noise.
    ones = jax.tree.map(jnp.ones_like, learner.init(jax.random.key(0)).encoders)
    labels = jnp.zeros(4, int)
    sure, vague = 9.0 * jax.nn.one_hot(labels, 10), jnp.zeros((4, 10))
    for unimodal, slowed in (((sure, vague), "audio"), ((vague, sure), "visual")):
        logits = fusion.FusedLogits(vague, unimodal)
        found = learner._modulated(ones, logits, labels, jax.random.key(1))
        ratio = float(jax.nn.softmax(sure)[0, 0] / 0.1)
        for modality in ("audio", "visual"):
            kernel = 1 - np.tanh(0.5 * ratio) if modality == slowed else 1.0
            for leaf in jax.tree.leaves(found[modality]):
                expected = kernel if leaf.ndim > 1 else 1.0
                np.testing.assert_allclose(leaf, np.full(leaf.shape, expected), rtol=1e-3)


def test_pairs_share_a_class_and_are_other_digits():
    digits = bundled.digits()
    options = {"noise_audio": 0.0, "noise_visual": 0.0, "visual_scale": 0.1}
    images, labels = jnp.asarray(digits.images), jnp.asarray(digits.labels)
    make = jax.jit(lambda key: data.paired_digits(key, images, labels, **options))
    train, test = make(jax.random.key(0))
    assert (len(train.labels), len(test.labels)) == (900, 897)
    known = {image.tobytes(): label for image, label in zip(*digits, strict=True)}
    seen = []
    for split in (train, test):
        visual = np.asarray(split.visual) / np.float32(0.1)
        visual = (np.round(visual * 16) / 16).astype(np.float32)
        seen.append({image.tobytes() for image in np.asarray(split.audio)})
        # Every picture is used once in each modality.
        assert {image.tobytes() for image in visual} == seen[-1]
        for audio, picture, label in zip(
            np.asarray(split.audio), visual, split.labels, strict=True
        ):
            assert known[audio.tobytes()] == known[picture.tobytes()] == label
        same = np.mean([np.array_equal(a, v) for a, v in zip(split.audio, visual, strict=True)])
        # A random permutation of about 90 leaves one in its place.
        assert same < 0.05
    assert len(seen[0] & seen[1]) == 0


def test_noise_is_independent_and_scaled():
    digits = bundled.digits()
    options = {"noise_audio": 0.5, "noise_visual": 0.3, "visual_scale": 0.1}
    blank = jnp.zeros(digits.images.shape)
    train, test = data.paired_digits(
        jax.random.key(1), blank, jnp.asarray(digits.labels), **options
    )
    for split in (train, test):
        audio, visual = np.ravel(split.audio), np.ravel(split.visual)
        assert (audio.std(), visual.std()) == pytest.approx((0.5, 0.03), rel=0.02)
        assert abs(np.corrcoef(audio, visual)[0, 1]) < 0.02


def test_regression_errors_have_their_variances():
    var = jnp.array([0.25, 4.0])
    target, predictions = data.gaussian_regression(
        jax.random.key(0), var, num_samples=20_000, noise=0.5
    )
    errors = np.asarray(predictions - target[:, None])
    np.testing.assert_allclose(errors.var(axis=0), np.asarray(var) + 0.25, rtol=0.05)
    np.testing.assert_allclose(errors.mean(axis=0), [0, 0], atol=0.06)
    # Only the target's own noise is common.
    assert np.cov(errors.T)[0, 1] == pytest.approx(0.25, abs=0.05)
    found = theory.mixtures(num_seeds=1, num_samples=20_000)
    assert found.errors.shape == (1, len(theory.PAIRS), 51)
    np.testing.assert_allclose(found.errors[0].min(axis=1), found.least, rtol=0.05)


def test_the_step_size_falls_one_epoch_early():
    rate = training.learning_rate(1.0, decay_epochs=(70, 150), steps_per_epoch=10)
    found = [float(rate(jnp.int32(10 * epoch))) for epoch in (0, 68, 69, 148, 149)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert float(rate(jnp.int32(689))) == 1


def test_initial_layers_are_xavier_normal():
    head = model.init_head(jax.random.key(0), "film", width=64, num_classes=10)
    assert head["hidden"].kernel.shape == (64 * 64, 64)
    kernel = np.asarray(head["hidden"].kernel)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (64 * 64 + 64)), rel=0.01)
    # Not cut off at two deviations.
    assert np.abs(kernel).max() > 3.5 * kernel.std()
    assert not head["hidden"].bias.any()


def test_resnets_have_a_feature_for_each_channel():
    shapes = (257, 188, 1), (224, 224, 3)
    abstract = nnx.eval_shape(lambda: model.Encoders("resnet18", shapes, rngs=nnx.Rngs(0)))
    audio, visual = (jax.ShapeDtypeStruct((2, *shape), np.float32) for shape in shapes)
    found = nnx.eval_shape(lambda network, a, v: network(a, v), abstract, audio, visual)
    assert [f.shape for f in found] == [(2, abstract.width)] * 2 == [(2, 512)] * 2


def test_pictures_are_resized_cropped_mirrored_and_normalised():
    mean, deviation = (np.array(x) for x in (data._PIXEL_MEAN, data._PIXEL_DEVIATION))
    count, height, width, size = 48, 40, 20, 20

    def pixels(normalised):
        return np.asarray(normalised) * deviation + mean

    centred = jax.jit(lambda images: data.centred(images, size))
    augmented = jax.jit(lambda key, images: data.augmented(key, images, size))
    # A flat picture stays flat wherever it is cut: no border comes in.
    flat = jnp.full((count, height, width, 3), 51, jnp.uint8)
    for made in (centred(flat), augmented(jax.random.key(0), flat)):
        assert made.shape == (count, size, size, 3)
        np.testing.assert_allclose(pixels(made), np.full(made.shape, 0.2), atol=1e-5)
    # A ramp over the width, where resizing changes nothing: the whole of it is kept in the centre,
    # a crop magnifies it, and the mirror turns it round.
    ramp = jnp.broadcast_to(10 * jnp.arange(width, dtype=jnp.uint8)[:, None], flat.shape)
    np.testing.assert_allclose(pixels(centred(ramp)), ramp[:, :size] / 255, atol=1e-5)
    made = pixels(augmented(jax.random.key(1), ramp))[:, size // 2, :, 0]
    span = made[:, -1] - made[:, 0]
    assert 12 < np.sum(span > 0) < 36
    assert np.all(np.abs(span) <= 190 / 255 + 1e-5)
    # The smallest part has 8 % of the area, so its width is at least 6.9 of 20.
    assert 0.22 < np.abs(span).min() < 0.7 * 190 / 255


@pytest.fixture
def crema(tmp_path):
    """The real layout in miniature."""
    folder = tmp_path / "crema"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        np.savez(
            folder / f"{split}.npz",
            audio=rng.normal(size=(count, 33, 24)).astype(np.float16),
            image=rng.integers(0, 256, (count, 36, 40, 3)).astype(np.uint8),
            label=np.arange(count) % 3,
        )
    return folder


class SmallNet(nnx.Module):
    """In place of a ResNet-18, which takes minutes to compile."""

    def __init__(self, channels, *, rngs):
        self.conv = nnx.Conv(channels, 512, (8, 8), strides=8, rngs=rngs)
        self.norm = nnx.BatchNorm(512, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2))


REAL = ["--dataset=crema_d", "--encoder=resnet18", "--image_size=32", "--batch_size=4"]


def test_the_real_layout_trains_and_is_tested(tmp_path, crema, monkeypatch):
    monkeypatch.setattr(model, "PooledResNet", SmallNet)
    words = [*REAL, f"--data_dir={crema}", "--method=arl", "--log_every=3", "--T=4"]
    assert run(tmp_path / "run", *words) == 0
    results = files.read_json(tmp_path / "run" / "results.json")
    assert all(c["threshold"] is None for c in results["claims"][10:])
    log = tmp_path / "run" / "train_arl" / "metrics.jsonl"
    steps, curve = metrics.curve(log, "test_accuracy")
    assert list(steps) == [0, 3, 6]
    final = results["methods"]["arl"]["accuracy"]["per_seed"]
    assert final == pytest.approx(list(curve[-1]))
    state = checkpoints.read_values(tmp_path / "run" / "train_arl" / "checkpoints")
    moments = [v for name, v in state.items() if name.startswith("statistics") and "mean" in name]
    assert len(moments) == 2
    assert all(m.any() for m in moments)


def replace(folder, split, **arrays):
    path = folder / f"{split}.npz"
    stored = files.read_arrays(path)
    np.savez(path, **{k: v for k, v in (stored | arrays).items() if v is not None})


@pytest.mark.parametrize(
    ("split", "arrays", "told"),
    [
        ("train", {"audio": None}, "no array 'audio'"),
        ("train", {"audio": np.zeros((12, 33, 24), np.int16)}, "dtype int16"),
        ("train", {"audio": np.full((12, 33, 24), np.nan)}, "NaN"),
        ("train", {"image": np.zeros((12, 36, 40), np.uint8)}, "shape"),
        ("train", {"image": np.zeros((12, 36, 40, 3), np.uint16)}, "expected uint8"),
        ("train", {"label": np.arange(11)}, "11 of 'label'"),
        ("train", {"label": np.arange(12) - 1}, "labels start at 0"),
        ("test", {"label": np.arange(5)}, "has the label 4"),
        ("test", {"audio": np.zeros((5, 33, 25), np.float16)}, "(33, 25)"),
    ],
)
def test_damaged_files_get_one_line(tmp_path, crema, split, arrays, told, capsys):
    replace(crema, split, **arrays)
    assert run(tmp_path / "run", *REAL, f"--data_dir={crema}") == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]


DATA = os.environ.get("ASYM_DATA_DIR", "")


@pytest.mark.skipif(
    not DATA or not (Path(DATA) / "crema_d" / "train.npz").is_file(),
    reason="ASYM_DATA_DIR names no folder with crema_d/train.npz",
)
def test_crema_d_has_the_shapes_of_the_paper():
    train, test = data.read_pairs(f"{DATA}/crema_d")
    assert train.audio.shape[1:] == (257, 188, 1)
    assert train.visual.shape[1:] == (224, 224, 3)
    assert set(np.unique(train.labels)) == set(np.unique(test.labels)) == set(range(6))
