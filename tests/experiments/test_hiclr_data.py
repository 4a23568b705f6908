"""HiCLR's clips, views and probes: procedural and recorded figures, what features tell."""

import dataclasses
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from experiments.common import app, files
from experiments.common.errors import UserError
from experiments.hiclr import augmentations, main, probes, skeletons, sources, synthetic, views

# Compiler options for the whole process would outlast these tests.
EXPERIMENT = dataclasses.replace(main.EXPERIMENT, xla_flags=())


def rbg(seed):
    # The default generator takes longer to compile than what is tested.
    return jax.random.key(seed, impl="rbg")


@functools.cache
def clips():
    sizes = {"num_train": 48, "num_test": 24, "frames": 32, "persons": 2, "cycles": 1.0}
    make = functools.partial(synthetic.make, **sizes, corrupted=0.0, corruption=0.2)
    return jax.jit(make)(rbg(0))


def test_procedural_classes_are_balanced_and_relative():
    train, test = clips()
    assert train.x.shape == (48, 3, 32, 25, 2)
    for split in (train, test):
        counts = np.bincount(split.y, minlength=synthetic.NUM_CLASSES)
        assert set(counts) == {len(split.y) // synthetic.NUM_CLASSES}
        np.testing.assert_array_equal(split.x[:, :, :, skeletons.NTU.center], 0)
    absent = ~np.any(np.asarray(train.x[..., 1]), axis=(1, 2, 3))
    # 0.8 of 48, at four standard deviations.
    assert abs(absent.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 48)


def test_the_group_of_limbs_moves():
    train, _ = clips()
    x = np.asarray(train.x[..., 0])
    travel = x.std(axis=2).max(axis=1)
    hands_and_feet = {7: (0, 2), 11: (1, 2), 15: (3,), 19: (4,)}
    for joint, groups in hands_and_feet.items():
        moving = np.isin(np.asarray(train.y) // 2, groups)
        # The torso carries the arms along.
        others = ~moving & (np.asarray(train.y) // 2 != 5)
        assert travel[moving, joint].mean() > 2.5 * travel[others, joint].mean()


def test_fast_classes_swing_twice_as_often():
    angles = jax.jit(
        jax.vmap(lambda k, c: synthetic._angles(k, synthetic._moving(jnp.int32(0)), c, 64)[:, 5])
    )
    keys = jax.random.split(jax.random.key(0), 40)
    crossings = [
        np.mean(np.sum(np.diff(np.sign(angles(keys, jnp.full(40, cycles))), axis=1) != 0, axis=1))
        for cycles in (1.0, 2.0)
    ]
    np.testing.assert_allclose(crossings, [2, 4], atol=0.3)


def test_bones_keep_their_lengths_and_figures_their_sides():
    bones = synthetic.rest_bones()
    mirror = np.asarray(skeletons.NTU.mirror)
    np.testing.assert_allclose(bones[mirror], bones * (-1, 1, 1), atol=1e-7)
    angles = jax.random.normal(jax.random.key(0), (5, 25))
    place = np.asarray(synthetic._positions(angles, jnp.full(25, 1.5)))
    parents = np.asarray(synthetic._PARENTS)
    lengths = np.linalg.norm(place - place[:, :, parents], axis=0)
    expected = np.broadcast_to(1.5 * np.linalg.norm(bones, axis=1), lengths.shape)
    np.testing.assert_allclose(lengths, expected, atol=1e-5)


def test_corruption_hits_its_share():
    still = jnp.zeros((3, 200, 25))
    see = jax.jit(synthetic._observed)
    clean, broken = (np.asarray(see(rbg(0), still, share, 0.5)) for share in (0.0, 0.25))
    # Relative to the centre: where that one is off, all are.
    others = np.arange(25) != skeletons.NTU.center
    moved = np.any(clean != broken, axis=0)[:, others]
    share = moved[~moved.all(axis=1)].mean()
    assert share == pytest.approx(0.25, abs=0.03)
    assert (broken - clean).std() > 0.2


def test_resizing_has_its_pixels_in_the_middle():
    clip = np.arange(4.0).reshape(4, 1, 1)
    np.testing.assert_allclose(sources.resized(clip, 2).ravel(), [0.5, 2.5])
    np.testing.assert_allclose(
        sources.resized(clip, 8).ravel(), [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    )
    np.testing.assert_array_equal(sources.resized(clip, 4), clip)


@pytest.mark.parametrize("angle", [0.7, -0.7])
def test_aligned_shoulders_lie_along_x(angle):
    rng = np.random.default_rng(0)
    clip = rng.normal(size=(6, 25, 3))
    clip[:, 4], clip[:, 8] = 0, (np.cos(angle), 0.3, np.sin(angle))
    turned = sources.aligned(clip, skeletons.NTU.shoulders)
    line = turned[:, 8] - turned[:, 4]
    np.testing.assert_allclose(line, np.broadcast_to([1, 0.3, 0], line.shape), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=2), np.linalg.norm(clip, axis=2))


@pytest.fixture
def kinect(tmp_path):
    """MSR Action3D's layout in miniature."""
    rng = np.random.default_rng(0)
    arrays = {
        "positions": rng.normal(size=(20, 9, 20, 3)).astype(np.float32),
        "lengths": np.full(20, 7),
        "action": np.arange(20) % 4,
        "subject": 1 + np.arange(20) % 10,
    }
    arrays["positions"][:, 3] = 0
    np.savez(tmp_path / "msr_action3d.npz", **arrays)
    return tmp_path, arrays


def test_subjects_are_split_and_lost_frames_left_out(kinect):
    folder, arrays = kinect
    skeleton = skeletons.MSR_ACTION3D
    train, test = sources.read_kinect(folder / "msr_action3d.npz", skeleton, frames=6, align=False)
    assert train.x.shape == test.x.shape == (10, 3, 6, 20, 1)
    np.testing.assert_array_equal(train.y, arrays["action"][::2])
    # Six frames are left of seven; the rest of the nine is padding.
    seen = arrays["positions"][0][[0, 1, 2, 4, 5, 6]]
    expected = seen - seen[:, skeleton.center, None]
    np.testing.assert_allclose(train.x[0, ..., 0], expected.transpose(2, 0, 1), atol=1e-6)
    aligned, _ = sources.read_kinect(folder / "msr_action3d.npz", skeleton, frames=6, align=True)
    one, other = skeleton.shoulders
    depth = aligned.x[:, 2, :, other, 0] - aligned.x[:, 2, :, one, 0]
    assert np.abs(depth).mean() < np.abs(train.x[:, 2, :, other] - train.x[:, 2, :, one]).mean()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"positions": np.zeros((20, 9, 21, 3))}, "shape"),
        ({"lengths": np.full(20, 10)}, "go from 1 to 9"),
        ({"action": np.arange(20) - 1}, "labels start at 0"),
        ({"action": np.arange(19)}, "19 of 'action'"),
        ({"subject": np.full(20, 2)}, "needs subjects"),
        ({"positions": np.zeros((20, 9, 20, 3))}, "holds no figure"),
    ],
)
def test_damaged_files_are_told(kinect, changes, told):
    folder, arrays = kinect
    np.savez(folder / "msr_action3d.npz", **(arrays | changes))
    with pytest.raises(UserError, match=told):
        sources.read_kinect(
            folder / "msr_action3d.npz", skeletons.MSR_ACTION3D, frames=6, align=False
        )


@pytest.fixture
def ntu(tmp_path):
    """The authors' layout in miniature."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        x = rng.normal(size=(count, 3, 10, 25, 2)).astype(np.float32)
        np.save(tmp_path / f"{split}_position.npy", x)
        np.save(tmp_path / f"{split}_label.npy", np.arange(count) % 3)
    return tmp_path


def opened(folder, **options):
    values = {"dataset": "ntu", "data_dir": str(folder), "frames": 10, "batch_size": 4} | options
    return sources.open_source(EXPERIMENT.settings("smoke", **values))


def test_the_authors_layout_is_read(ntu):
    source = opened(ntu)
    assert (source.num_classes, source.steps_per_epoch) == (3, 3)
    assert source.test.x.shape == (6, 3, 10, 25, 2)
    batch = source.batches.sample(source.train.x, jax.random.key(0), jnp.int32(7))
    assert int(batch.epoch) == 2
    rows = {np.asarray(clip).tobytes() for clip in batch.x}
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("train_position", np.zeros((12, 3, 10, 24, 2), np.float32), "shape"),
        ("train_position", np.zeros((12, 3, 9, 25, 2), np.float32), "say --frames=9"),
        ("train_position", np.full((12, 3, 10, 25, 2), np.nan, np.float32), "NaN"),
        ("train_position", np.zeros((12, 3, 10, 25, 2), np.int32), "kind"),
        ("val_label", np.arange(5), "there are 6 clips"),
        ("val_label", np.arange(6), "which no training clip has"),
        ("train_label", np.arange(12) - 1, "labels start at 0"),
    ],
)
def test_a_damaged_layout_is_told(ntu, name, array, told):
    np.save(ntu / f"{name}.npy", array)
    with pytest.raises(UserError, match=told):
        opened(ntu)


def augmenter(stream="joint", **options):
    config = EXPERIMENT.settings("smoke", **options)
    return views.Augmenter(config, skeletons.NTU, stream)


def test_the_strong_view_is_a_masked_normal_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 8, 25, 2)) + 9, jnp.float32)
    fill = jnp.float32(77)
    make = jax.jit(lambda a, x: a(rbg(0), x, fill, 3), static_argnums=0)
    _, _, strong = make(augmenter(mask_ratio=0.2).growing, x)
    masked = np.asarray(strong == fill)
    # One mask for all clips, coordinates and persons: five of 25 joints in each frame.
    assert np.all(masked == masked[:1, :1, :, :, :1])
    np.testing.assert_array_equal(masked[0, 0, :, :, 0].sum(axis=1), 5)
    # Without a strong augmentation it is a normal view with draws of its own.
    _, normal, unmasked = make(augmenter(strong_aug="none").growing, x)
    np.testing.assert_array_equal(np.asarray(strong)[~masked], np.asarray(unmasked)[~masked])
    assert not np.array_equal(normal, unmasked)


def test_disjoint_sets_leave_the_weaker_augmentations_out():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 8, 25, 1)), jnp.float32)
    make = jax.jit(lambda x: augmenter(growing=False).growing(rbg(0), x, 0.0, 3)[2])
    strong = np.asarray(make(x))
    kept = strong != 0
    np.testing.assert_array_equal(strong[kept], np.asarray(x)[kept])
    assert kept.mean() == pytest.approx(23 / 25)


def test_streams_are_made_before_masking():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8, 25, 1)), jnp.float32)
    made = {}
    for stream in ("joint", "motion", "bone"):
        one = augmenter(stream, growing=False)
        made[stream] = np.asarray(one.growing(rbg(0), x, jnp.float32(5), 3)[2])
    masked = made["joint"] == 5
    for stream, of in (
        ("motion", augmentations.motion_stream),
        ("bone", lambda x: augmentations.bone_stream(x, skeletons.NTU.parents)),
    ):
        np.testing.assert_array_equal(made[stream] == 5, masked)
        np.testing.assert_array_equal(made[stream][~masked], np.asarray(of(x))[~masked])


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    labels = np.arange(160) % 4
    x = (centres[labels] + rng.normal(size=(160, 6))) * np.array([1, 1, 30, 1, 0.01, 1])
    x = np.concatenate([x, np.ones((160, 1))], axis=1).astype(np.float32)
    return tuple(map(jnp.asarray, (x[:120], labels[:120], x[120:], labels[120:])))


def test_the_logistic_probe_is_scikit_learns(features):
    train, labels, test, _ = features
    found = jax.jit(probes.logistic_logits, static_argnums=3)(train, labels, test, 4)
    train, labels, test = map(np.asarray, (train, labels, test))
    varying = train.std(axis=0) > 0
    mean, deviation = train[:, varying].mean(axis=0), train[:, varying].std(axis=0)
    reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
    reference.fit((train[:, varying] - mean) / deviation, labels)
    expected = reference.predict_proba((test[:, varying] - mean) / deviation)
    np.testing.assert_allclose(jax.nn.softmax(found, axis=1), expected, atol=2e-3)


def test_nearest_neighbours_are_scikit_learns(features):
    train, labels, test, expected = features
    found = probes.nearest_accuracy(train, labels, test, expected, 4)
    reference = KNeighborsClassifier(5, metric="cosine", weights=lambda d: 1 + 1e-3 * (1 - d))
    reference.fit(train, labels)
    assert float(found) == pytest.approx(reference.score(test, expected), abs=1e-6)


def test_the_linear_protocol_learns(features):
    train, labels, test, expected = features
    # Neither the constant nor the wide column, which its step size cannot take.
    train, test = (x[:, jnp.array([0, 1, 3, 5])] for x in (train, test))
    logits = probes.linear_protocol_logits(
        jax.random.key(0), train, labels, test, 4, epochs=50, rate=0.1
    )
    reference = LogisticRegression(C=1e6, max_iter=5000).fit(train, labels)
    found = float(probes.accuracy(logits, expected))
    assert found == pytest.approx(reference.score(test, expected), abs=0.1)
    assert found > 0.5


DATA = os.environ.get("ASYM_DATA_DIR", "")
RECORDED = Path(DATA) / "skeletons"


@pytest.mark.skipif(
    not DATA or not (RECORDED / "msr_action3d.npz").is_file(),
    reason="ASYM_DATA_DIR names no folder with skeletons/msr_action3d.npz",
)
@pytest.mark.parametrize(
    ("name", "classes", "counts"), [("msr_action3d", 20, 565), ("utkinect", 10, 199)]
)
def test_recorded_figures_are_figures(tmp_path, name, classes, counts):
    skeleton = skeletons.SKELETONS[name]
    train, test = sources.read_kinect(RECORDED / f"{name}.npz", skeleton, frames=24, align=False)
    assert len(train.y) + len(test.y) == counts
    assert set(train.y) == set(test.y) == set(range(classes))
    x = np.concatenate([train.x, test.x])[..., 0]
    bones = np.linalg.norm(x - x[..., list(skeleton.parents)], axis=1)
    typical = np.median(bones, axis=(0, 1))
    assert np.all(typical[np.arange(20) != skeleton.center] > 0.02)
    assert typical.max() < 0.7
    # The two sides of a body are alike.
    np.testing.assert_allclose(typical, typical[list(skeleton.mirror)], atol=0.03)


@pytest.mark.skipif(
    not DATA or not (RECORDED / "msr_action3d.npz").is_file(),
    reason="ASYM_DATA_DIR names no folder with skeletons/msr_action3d.npz",
)
def test_an_untrained_encoder_tells_recorded_actions_apart(tmp_path):
    words = ["--preset=smoke", "--method=random", "--dataset=msr_action3d", "--frames=24"]
    words += [f"--data_dir={RECORDED}", f"--workdir={tmp_path}"]
    assert app.run(EXPERIMENT, ["hiclr", *words]) == 0
    measured = files.read_json(tmp_path / "results.json")["methods"]["random"]
    # Of 20 classes.
    assert measured["probe"]["mean"] > 0.1
