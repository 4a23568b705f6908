"""The ASL binary: presets, kill and resume, devices, data sources, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from asym import similarity
from experiments.asl import main, scoring, sources, training
from experiments.common import app, checkpoints, files, metrics, report, seeds
from tests.experiments.toy import with_devices

SMALL = [
    "--preset=smoke",
    "--num_scenes=12",
    "--num_views=4",
    "--groups=4",
    "--num_positives=6",
    "--num_unrelated=2",
]


def run(workdir, *words):
    return app.run(main.EXPERIMENT, ["asl", *SMALL, f"--workdir={workdir}", *words])


def start(workdir, *words, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.asl.main", *SMALL, f"--workdir={workdir}", *words],
        cwd=report.REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """All methods once, two seeds."""
    workdir = tmp_path_factory.mktemp("compared")
    assert run(workdir, "--compare", "--num_seeds=2", "--steps=4") == 0
    return workdir, files.read_json(workdir / "results.json")


def test_compare_runs_every_method_and_trains_what_differs_once(compared):
    workdir, results = compared
    assert list(results["methods"]) == list(main.METHODS)
    trained = sorted(p.name for p in workdir.glob("train_*"))
    assert trained == ["train_asl", "train_asl_reversed", "train_metric", "train_norm_regress"]
    asl, soft = results["methods"]["asl"], results["methods"]["asl_softscore"]
    assert asl["mu_ap_cosine"] == soft["mu_ap_cosine"]
    metric = results["methods"]["metric"]
    assert metric["mu_ap"] == metric["mu_ap_cosine"]
    assert asl["mu_ap"] == asl["mu_ap_norm_filter"]


def test_every_acceptance_item_is_a_claim(compared):
    _, results = compared
    statements = [c["statement"] for c in results["claims"]]
    assert len(statements) == 14
    exact = results["claims"][1:7]
    assert all(c["holds"] is True for c in exact)
    assert [c["threshold"] for c in results["claims"][7:11]] == [0.8, 0.05, 0.0, 0.0]
    assert all(c["measured"] is not None for c in results["claims"][7:])


def test_the_figure_is_drawn(compared):
    workdir, results = compared
    assert results["figures"] == ["asl.png"]
    with Image.open(workdir / "figures" / "asl.png") as picture:
        assert picture.width > 1000


@pytest.mark.parametrize(
    "words",
    [
        [
            "--method=asl",
            "--pair_sampling=all_pairs",
            "--norm_feature=pool",
            "--crop_mode=crop_pad",
        ],
        ["--method=metric", "--notriplet_normalize", "--schedule=baseline", "--margin=0.3"],
        ["--method=asl", "--multi_scale=24,32", "--stretch=0.5", "--pair_sampling=extremes"],
        ["--method=asl_softscore", "--share_hard_negatives=0", "--max_results=40", "--nofilter"],
        ["--method=asl", "--dataset=photos", "--ratio_threshold=0.9", "--num_positives=200"],
        ["--method=asl", "--backbone=resnet18", "--waveblock", "--input_size=16", "--steps=1"],
    ],
)
def test_every_option_runs(tmp_path, words):
    assert run(tmp_path, "--steps=2", *words) == 0
    results = files.read_json(tmp_path / "results.json")
    (measured,) = results["methods"].values()
    assert 0 <= measured["mu_ap"]["mean"] <= 1


def parameters(workdir):
    return checkpoints.read_values(workdir / "train_asl" / "checkpoints")


def test_ten_kills_change_nothing(tmp_path):
    words = ["--steps=160", "--log_every=10", "--checkpoint_every=20"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, *words) == 0
    rng = np.random.default_rng(0)
    log = parts / "train_asl" / "metrics.jsonl"
    kills = 0
    while kills < 10:
        lines = len(log.read_text().splitlines()) if log.exists() else 0
        process = start(parts, *words)
        # Anywhere: while starting, training, saving or measuring; but most runs get on a little.
        end = time.monotonic() + (rng.uniform(0, 3) if rng.random() < 0.2 else 90)
        while process.poll() is None and time.monotonic() < end:
            if log.exists() and len(log.read_text().splitlines()) > lines:
                time.sleep(rng.uniform(0, 0.12))
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), err
        kills += 1
    assert run(parts, *words) == 0
    expected, found = parameters(whole), parameters(parts)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    results = [files.read_json(w / "results.json")["methods"] for w in (whole, parts)]
    assert results[0] == results[1]
    logs = [(w / "train_asl" / "metrics.jsonl").read_text() for w in (whole, parts)]
    assert logs[0] == logs[1]


def test_one_device_and_eight_give_the_same_losses(tmp_path):
    losses = []
    for count in (1, 8):
        process = start(
            tmp_path / str(count),
            "--steps=4",
            "--log_every=1",
            "--groups=8",
            env=with_devices(count),
        )
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        rows = metrics.read(tmp_path / str(count) / "train_asl" / "metrics.jsonl")
        losses.append([row["loss"][0] for row in rows])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)


def test_swapping_the_roles_swaps_the_direction():
    # The reversed ablation trains lengths the other way: one batch, opposite gradients of lengths.
    features = jax.random.normal(jax.random.key(0), (3, 4, 5))
    scales = jax.random.uniform(jax.random.key(1), (3, 4))
    hi, lo = training._pairs(jax.random.key(2), scales, "extremes")
    back = training._pairs(jax.random.key(2), -scales, "extremes")
    np.testing.assert_array_equal(hi, back[1])
    np.testing.assert_array_equal(lo, back[0])
    forward = similarity.norm_ratio_loss(features, hi=hi, lo=lo)
    backward = similarity.norm_ratio_loss(features, hi=back[0], lo=back[1])
    assert not np.isclose(forward, backward)


def test_an_epoch_visits_every_class_once_and_views_are_distinct():
    classes, views = 12, 5
    marks = jnp.arange(classes)[:, None] * 10 + jnp.arange(views)
    data = sources.data.Training(marks[..., None, None, None], marks.astype(jnp.float32))
    source = training.Source(data, jax.random.key(3), jnp.float32(1))
    seen = []
    for step in range(4):
        batch = training.sample(source, jax.random.key(step), jnp.int32(step), groups=4, views=3)
        if step < 3:
            seen += list(np.asarray(batch.labels))
        shown = np.asarray(batch.images)[..., 0, 0, 0]
        np.testing.assert_array_equal(shown // 10, np.repeat(batch.labels[:, None], 3, axis=1))
        np.testing.assert_array_equal(shown, batch.scales)
        assert all(len(set(row)) == 3 for row in shown)
    assert sorted(seen) == list(range(classes))


def test_the_published_schedule():
    rate = training.learning_rate("baseline", 1.0, 2500, 0)
    by_epoch = [float(rate(jnp.int32(100 * e + 50))) for e in range(25)]
    assert by_epoch[:6] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802, 1.0])
    assert by_epoch[9] == by_epoch[10] == pytest.approx(1.0)
    assert by_epoch[24] == pytest.approx(0.5 * (np.cos(np.pi * 14 / 15) + 1), rel=1e-5)


def described(vectors, lengths):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scoring.Described(unit, unit * np.asarray(lengths)[:, None], np.asarray(lengths))


def test_scoring_of_a_case_done_by_hand():
    # Query 0 is a copy (shorter), query 1 a reversed hard negative (longer), query 2 unrelated.
    rng = np.random.default_rng(0)
    content = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    references = described(content[:2], [1.0, 0.5])
    queries = described(content[[0, 1, 2]], [0.6, 0.9, 1.0])
    truth = scoring.Truth(np.array([[0, 0]]), np.array([[1, 1]]))
    found = scoring.candidates(queries, references, top_k=1, max_results=3)
    assert set(zip(found.query, found.reference, strict=True)) >= {(0, 0), (1, 1)}
    options = {"threshold": 1.0, "soft_beta": 1.0, "rng": rng}
    cosine, _ = scoring.measure(queries, references, found, truth, rule="cosine", **options)
    filtered, arrays = scoring.measure(queries, references, found, truth, rule="norm", **options)
    # By cosine the hard negative ties with the copy, and ties hurt.
    assert (cosine["mu_ap"], filtered["mu_ap"]) == (0.5, 1.0)
    assert (filtered["direction_accuracy"], filtered["recall_at_p90"]) == (1.0, 1.0)
    assert arrays["ratio_copies"] == pytest.approx([0.6])
    assert arrays["ratio_reversed"] == pytest.approx([1.8])
    stretched = scoring.candidates(
        queries, references, top_k=1, max_results=3, stretch=2.0, training_centre=content[0]
    )
    assert stretched.score[0] == pytest.approx(found.score[0] - 2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset=imagenet"], "--dataset=imagenet: choose"),
        (["--dataset=tfds:cifar10"], "needs --data_dir"),
        (["--dataset=tfds:cifar10", "--data_dir=/nowhere"], "/nowhere"),
        (["--dataset=disc21", "--data_dir=/nowhere"], "/nowhere"),
        (["--data_dir=/nowhere"], "reads no folder"),
        (["--views=9"], "--views=9"),
        (["--groups=13"], "--groups=13"),
        (["--waveblock"], "needs a resnet"),
        (["--method=clip"], "choose one of"),
        (["--backbone=resnet18", "--backbone_weights=/no.safetensors"], "/no.safetensors"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, words, told, capsys):
    assert run(tmp_path, *words) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]


@pytest.fixture
def disc_folder(tmp_path):
    """DISC21's layout in miniature."""
    root = tmp_path / "disc"

    def save(path, seed):
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = sources.data.render_scenes(jax.random.key(seed), 1, 48)[0]
        Image.fromarray(np.uint8(np.asarray(scene) * 255)).save(path, quality=95)

    for i in range(6):
        save(root / "training_images" / f"T{i}.jpg", i)
    for i in range(2):
        for j in "01":
            save(root / "negative_pair" / str(i) / f"{j}.jpg", 20 + i)
    for i in range(4):
        save(root / "reference_images" / f"R{i}.jpg", 40 + i)
        save(root / "query_images_h5" / f"Q{i}.jpg", 40 + i)
    rows = [f"Q{i},{f'R{i}' if i < 3 else ''}" for i in range(4)]
    (root / "ground_truth.csv").write_text("\n".join(["query_id,reference_id", *rows]))
    return root


def test_the_real_layout_trains_resumes_and_is_measured(tmp_path, disc_folder):
    words = [
        "--dataset=disc21",
        f"--data_dir={disc_folder}",
        "--num_views=20",
        "--input_size=32",
        "--multi_scale=24,40",
        "--stretch=1",
        "--num_seeds=2",
        "--method=asl",
        "--log_every=2",
        "--checkpoint_every=2",
    ]
    assert run(tmp_path / "whole", *words, "--steps=4") == 0
    results = files.read_json(tmp_path / "whole" / "results.json")
    # Queries equal their references here, so the cosine finds every pair.
    assert results["methods"]["asl"]["recall_at_rank10"]["mean"] == 1
    assert "direction_accuracy" not in results["methods"]["asl"]
    # A kill after two steps: the stream goes on where it was.
    parts = tmp_path / "parts"
    assert run(parts, *words, "--steps=2") == 0
    for name in ("results.json", "outcomes/asl.npz"):
        (parts / name).unlink()
    config = json.loads((parts / "config.json").read_text())
    (parts / "config.json").write_text(json.dumps(config | {"steps": 4}))
    saved = parameters(parts)
    assert run(parts, *words, "--steps=4") == 0
    assert any(not np.array_equal(saved[k], v) for k, v in parameters(parts).items())


DATA = os.environ.get("ASYM_DATA_DIR", "")


@pytest.mark.skipif(
    not (Path(DATA) / "tfds" / "cifar10").is_dir() or not DATA,
    reason="ASYM_DATA_DIR names no folder with tfds/cifar10",
)
def test_cifar10_as_scenes(tmp_path):
    words = ["--dataset=tfds:cifar10", f"--data_dir={DATA}/tfds", "--steps=2"]
    assert run(tmp_path, *words) == 0
    results = files.read_json(tmp_path / "results.json")
    assert np.isfinite(results["methods"]["asl"]["mu_ap"]["mean"])


def test_seeds_train_as_one_program_and_differ(compared):
    workdir, results = compared
    per_seed = results["methods"]["asl"]["mu_ap_cosine"]["per_seed"]
    assert len(per_seed) == 2
    weights = parameters(workdir)
    kernel = next(v for k, v in weights.items() if "projector.linear1.kernel" in k)
    assert kernel.shape[0] == 2
    assert not np.allclose(kernel[0], kernel[1])
    assert seeds.keys(0, 2).shape == (2,)
