"""Real layout: edits that keep their promises, batches as a function of the step, clear errors."""

import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.asl import disc, edits
from experiments.common.errors import UserError

SIZE = 32


def picture(seed, height=64, width=64):
    """A smooth random picture, alike in no two seeds."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def other(rng):
    return picture(1000 + rng.integers(5))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("disc")

    def save(path, seed):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, 64, 80)).save(path, quality=95)

    for i in range(6):
        save(root / "training_images" / f"T{i:06d}.jpg", i)
        save(root / "reference_images" / f"R{i:06d}.jpg", 100 + i)
    for i in range(5):
        save(root / "query_images_h5" / f"Q{i:05d}.jpg", 200 + i)
    for i in range(2):
        for j in (0, 1):
            save(root / "negative_pair" / f"{i:05d}" / f"{j}.jpg", 300 + 2 * i + j)
    (root / "ground_truth.csv").write_text(
        "query_id,reference_id\nQ00001,R000003\nQ00000,R000005\nQ00004,\n"
    )
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy that the test may damage."""
    shutil.copytree(made, tmp_path / "disc")
    return tmp_path / "disc"


EDITS = [
    edits.rotate,
    edits.pixelise,
    edits.shuffle_pixels,
    edits.perspective,
    edits.pad,
    edits.colour_jitter,
    edits.blur,
    edits.grey,
    edits.mirror,
    edits.overlay_emoji,
    edits.overlay_text,
    lambda rng, image: edits.overlay_picture(rng, image, other=other),
    lambda rng, image: edits.paste_onto(rng, image, other=other),
]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("shape", [(64, 64), (40, 70), (3, 2)])
def test_each_edit_is_a_pure_function_of_the_generator(edit, shape):
    image = picture(0, *shape)
    before = image.copy()
    results = [edit(np.random.default_rng(seed), image) for seed in (1, 1, 2, 3, 4)]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(results[0], results[1])
    for result in results:
        assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3
    if shape != (3, 2):
        changed = [r.shape != image.shape or (r != image).any() for r in results[1:]]
        assert sum(changed) >= 3


def test_edits_do_what_they_say():
    image = picture(0)
    grey = edits.grey(np.random.default_rng(0), image)
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    shuffled = edits.shuffle_pixels(np.random.default_rng(0), image)
    assert sorted(map(tuple, shuffled.reshape(-1, 3))) == sorted(map(tuple, image.reshape(-1, 3)))
    assert 0.05 < (shuffled != image).any(-1).mean() <= 0.4
    padded = edits.pad(np.random.default_rng(1), image)
    rows, columns = (np.array(padded.shape[:2]) - 64) // 2
    np.testing.assert_array_equal(padded[rows : rows + 64, columns : columns + 64], image)
    np.testing.assert_array_equal(edits.mirror(None, image)[:, 0], image[:, -1])
    blurred = edits.blur(
        np.random.default_rng(0), edits.shuffle_pixels(np.random.default_rng(0), image)
    )
    assert (
        np.abs(np.diff(blurred.astype(int), axis=0)).mean()
        < np.abs(np.diff(shuffled.astype(int), axis=0)).mean()
    )


def test_perspective_without_moves_is_the_identity(monkeypatch):
    class Still:
        def uniform(self, low, high):
            return 0.0

        def normal(self, mean, deviation, size):
            return np.zeros(size)

    image = picture(0)
    moved = edits.perspective(Still(), image).astype(int)
    np.testing.assert_allclose(moved[1:-1, 1:-1], image[1:-1, 1:-1], atol=1)


def test_crop_reports_the_area_that_it_kept():
    # Red counts rows and green counts columns: the crop's range tells its window.
    ramp = np.arange(200, dtype=np.uint8)
    image = np.zeros((200, 200, 3), np.uint8)
    image[..., 0], image[..., 1] = ramp[:, None], ramp
    areas = []
    for seed in range(200):
        cropped, area = edits.random_resized_crop(np.random.default_rng(seed), image, 200)
        spans = [int(np.ptp(cropped[..., channel])) + 1 for channel in (0, 1)]
        assert spans[0] * spans[1] / 200**2 == pytest.approx(area, abs=0.02)
        assert 0.73 < spans[0] / spans[1] < 1.37
        areas.append(area)
    assert 0.19 < min(areas) < 0.25 and 0.95 < max(areas) <= 1.0
    assert np.mean(areas) == pytest.approx(0.6, abs=0.05)


def test_edited_view_draws_every_edit_with_its_probability(monkeypatch):
    expected = {
        "rotate": 0.3, "pixelise": 0.3, "shuffle_pixels": 0.3, "perspective": 0.3, "pad": 0.3,
        "overlay_picture": 0.3, "colour_jitter": 0.8, "blur": 1.0, "grey": 0.3, "mirror": 0.5,
        "overlay_emoji": 0.3, "overlay_text": 0.6, "paste_onto": 0.2,
    }  # fmt: skip
    counts = dict.fromkeys(expected, 0)

    def counted(name):
        def edit(rng, image, **_):
            counts[name] += 1
            return image

        return edit

    for name in expected:
        monkeypatch.setattr(edits, name, counted(name))
    rng = np.random.default_rng(0)
    for _ in range(1000):
        edits.edited_view(rng, picture(0, 8, 8), 8, other)
    for name, probability in expected.items():
        assert counts[name] / 1000 == pytest.approx(probability, abs=0.06), name


def test_views_have_their_size_and_scale():
    for seed in range(20):
        view = edits.edited_view(np.random.default_rng(seed), picture(0, 50, 90), SIZE, other)
        assert view.image.shape == (SIZE, SIZE, 3) and view.image.dtype == np.uint8
        assert 0.19 < view.scale <= 1.0
    full = edits.full_view(picture(0, 50, 90), SIZE)
    assert full.image.shape == (SIZE, SIZE, 3) and full.scale == 1.0


def test_training_jitter_moves_by_the_margin_at_most():
    image = picture(0, 256, 256)
    padded = np.pad(image, ((10, 10), (10, 10), (0, 0)))
    places = {padded[i : i + 256, j : j + 256].tobytes() for i in range(21) for j in range(21)}
    mirrored = 0
    for seed in range(30):
        moved = edits.training_jitter(np.random.default_rng(seed), image)
        if moved.tobytes() not in places:
            mirrored += 1
    assert 7 <= mirrored <= 23


def test_batches_are_a_function_of_the_step(made):
    first = disc.DiscTraining(made, SIZE, groups=3, views=4, seed=5)
    again = disc.DiscTraining(made, SIZE, groups=3, views=4, seed=5)
    assert first.num_classes == 8 and first.steps_per_epoch == 2
    later = {step: again.fetch(step) for step in (3, 0)}
    for step, batch in later.items():
        for name, value in first.fetch(step).items():
            np.testing.assert_array_equal(value, batch[name])
    batch = later[0]
    assert batch["images"].shape == (3, 4, SIZE, SIZE, 3) and batch["images"].dtype == np.uint8
    assert batch["scales"].shape == (3, 4) and batch["scales"].dtype == np.float32
    assert batch["labels"].dtype == np.int32 and batch["direction_known"].dtype == bool
    another = disc.DiscTraining(made, SIZE, groups=3, views=4, seed=6).fetch(0)
    assert (another["images"] != batch["images"]).any()
    first.close()


def test_an_epoch_has_every_class_at_most_once_and_another_order(made):
    training = disc.DiscTraining(made, 8, groups=2, views=1)
    orders = [
        np.concatenate([training.fetch(4 * epoch + step)["labels"] for step in range(4)])
        for epoch in range(3)
    ]
    for order in orders:
        assert sorted(order) == list(range(8))
    assert any((order != orders[0]).any() for order in orders)


def test_views_come_without_replacement_and_are_fixed_edits(made, monkeypatch):
    monkeypatch.setattr(edits, "training_jitter", lambda rng, image: image)
    training = disc.DiscTraining(made, 16, groups=6, views=20, hard_negative_pairs="off")
    one, two = training.fetch(0), training.fetch(1)
    for label in range(6):
        groups = []
        for batch in (one, two):
            (row,) = np.flatnonzero(batch["labels"] == label)
            assert (batch["scales"][row] == 1.0).sum() == 1
            assert len({view.tobytes() for view in batch["images"][row]}) == 20
            groups.append({view.tobytes() for view in batch["images"][row]})
        assert groups[0] == groups[1], "all 20 views of a class are the same in every epoch"


def test_view_zero_is_the_original(made, monkeypatch):
    monkeypatch.setattr(edits, "training_jitter", lambda rng, image: image)
    training = disc.DiscTraining(made, SIZE, groups=6, views=20, hard_negative_pairs="off")
    batch = training.fetch(0)
    for label, images, scales in zip(
        batch["labels"], batch["images"], batch["scales"], strict=True
    ):
        path = made / "training_images" / f"T{label:06d}.jpg"
        expected = np.asarray(Image.open(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(images[scales == 1.0][0], expected)


@pytest.mark.parametrize(("mode", "classes"), [("same_class", 8), ("separate", 10), ("off", 6)])
def test_hard_negative_pairs(made, monkeypatch, mode, classes):
    monkeypatch.setattr(edits, "training_jitter", lambda rng, image: image)
    training = disc.DiscTraining(made, 16, groups=classes, views=20, hard_negative_pairs=mode)
    assert training.num_classes == classes
    batch = training.fetch(0)
    np.testing.assert_array_equal(batch["direction_known"], batch["labels"] < 6)
    originals = {
        path: edits.full_view(np.asarray(Image.open(path)), 16).image.tobytes()
        for path in made.glob("negative_pair/*/*.jpg")
    }
    members = {}
    for step in range(12):
        batch = training.fetch(step)
        for label, images in zip(batch["labels"], batch["images"], strict=True):
            for image in images:
                for path, original in originals.items():
                    if image.tobytes() == original:
                        members.setdefault(int(label), set()).add(path)
    if mode == "same_class":
        folders = sorted((made / "negative_pair").iterdir())
        assert members == {6 + i: {f / "0.jpg", f / "1.jpg"} for i, f in enumerate(folders)}
    else:
        assert all(len(paths) == 1 for paths in members.values())
        assert len(members) == (4 if mode == "separate" else 0)


def test_evaluation(made):
    evaluation = disc.DiscEvaluation(made, SIZE)
    assert evaluation.query_ids == [f"Q{i:05d}" for i in range(5)]
    assert evaluation.reference_ids == [f"R{i:06d}" for i in range(6)]
    np.testing.assert_array_equal(evaluation.ground_truth, [[1, 3], [0, 5]])
    batches = list(evaluation.batches("reference", 4))
    assert [len(batch) for batch in batches] == [4, 2]
    image = Image.open(made / "reference_images" / "R000005.jpg")
    expected = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(batches[1][1], expected)
    assert len(list(evaluation.batches("query", 5))) == 1


def test_other_query_folder_and_ground_truth_without_header(root):
    (root / "query_images_h5").rename(root / "query_images")
    (root / "ground_truth.csv").write_text("Q00002,R000001\n\n")
    np.testing.assert_array_equal(disc.DiscEvaluation(root).ground_truth, [[2, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q00002,R999999\n", r"line 1: no image of the reference 'R999999'"),
        ("query_id,reference_id\nQ9,R000001\n", r"line 2: no image of the query 'Q9'"),
        ("Q00002\n", "line 1: expected query_id,reference_id"),
        ("Q00002,\n", "names no pair"),
        ("Q00002,R000001\nQ00002,R000001\n", "twice"),
    ],
)
def test_bad_ground_truth(root, text, message):
    (root / "ground_truth.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        disc.DiscEvaluation(root)


def test_missing_parts_are_named_with_the_layout(root):
    def refused(make, message):
        with pytest.raises(UserError, match=message) as caught:
            make()
        assert "training_images/*.jpg" in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(lambda: disc.DiscTraining(root / "gone"), "data folder not found")
    (root / "ground_truth.csv").unlink()
    refused(lambda: disc.DiscEvaluation(root), r"ground_truth\.csv")
    shutil.rmtree(root / "query_images_h5")
    refused(lambda: disc.DiscEvaluation(root), "query_images_h5")
    (root / "negative_pair" / "00001" / "1.jpg").unlink()
    refused(lambda: disc.DiscTraining(root, groups=1), r"00001/1\.jpg")
    shutil.rmtree(root / "negative_pair")
    refused(lambda: disc.DiscTraining(root, groups=1), "--hard_negative_pairs=off")
    disc.DiscTraining(root, groups=1, hard_negative_pairs="off")
    shutil.rmtree(root / "training_images")
    refused(lambda: disc.DiscTraining(root, groups=1), "training_images")


def test_bad_arguments_and_a_broken_image(root):
    with pytest.raises(UserError, match=r"9 groups a batch, but .* has 8 classes"):
        disc.DiscTraining(root, groups=9)
    with pytest.raises(UserError, match="21 views"):
        disc.DiscTraining(root, groups=1, views=21)
    with pytest.raises(UserError, match="choose same_class"):
        disc.DiscTraining(root, groups=1, hard_negative_pairs="yes")
    (root / "training_images" / "T000002.jpg").write_bytes(b"broken")
    training = disc.DiscTraining(root, 16, groups=6, views=1, hard_negative_pairs="off")
    with pytest.raises(UserError, match=r"T000002\.jpg"):
        training.fetch(0)
