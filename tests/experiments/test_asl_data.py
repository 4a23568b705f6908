"""The stand-in: areas, full frames, crops found in their scenes, indices of the evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.asl import data
from experiments.common.errors import UserError

SIZE = 64
COUNTS = data.evaluation_counts(0.5, positives=4, unrelated=2)


@functools.cache
def rendered():
    render = functools.partial(data.render_scenes, num=20, size=SIZE)
    return jax.jit(render)(jax.random.key(1))


def scenes(num=12):
    return rendered()[:num]


def compiled(function, **options):
    return jax.jit(functools.partial(function, **options))


def resized(image, size):
    shape = (size, size, 3)
    return jax.image.resize(image, shape, "linear", antialias=True)


def test_scenes_are_pictures_that_differ():
    images = np.asarray(scenes())
    assert images.shape == (12, SIZE, SIZE, 3) and images.dtype == np.float32
    assert images.min() >= 0.0 and images.max() <= 1.0
    for i in range(12):
        assert images[i].std() > 0.05
        for j in range(i):
            assert np.abs(images[i] - images[j]).mean() > 0.02


def test_stripes_have_seven_to_nine_cycles_a_side():
    # The spectrum of the picture, without its slow parts, peaks on a ring of 7 to 9 cycles; the
    # shapes move the peak in a few scenes only.
    images = np.asarray(rendered()).mean(-1)
    window = np.hanning(64)[:, None] * np.hanning(64)
    spectrum = np.abs(np.fft.fft2((images - images.mean((1, 2), keepdims=True)) * window))
    frequency = np.fft.fftfreq(64, 1 / 64)
    radius = np.hypot(frequency[:, None], frequency)
    spectrum[:, radius < 5] = 0
    peak = radius.ravel()[spectrum.reshape(20, -1).argmax(1)]
    assert ((peak > 6) & (peak < 10)).mean() >= 0.8


@pytest.mark.parametrize("area", [1e-3, 0.2, 0.5, 0.8, 0.99, 1.0])
def test_window_has_exactly_the_area_and_lies_in_the_scene(area):
    keys = jax.random.split(jax.random.key(0), 200)
    window = jax.jit(jax.vmap(data.random_window, in_axes=(0, None)))(keys, area)
    np.testing.assert_allclose(window.height * window.width, area, rtol=1e-5)
    aspect = np.asarray(window.width / window.height)
    assert aspect.min() >= 0.75 - 1e-5 and aspect.max() <= 4 / 3 + 1e-5
    assert min(window.top.min(), window.left.min()) >= 0
    assert max((window.top + window.height).max(), (window.left + window.width).max()) <= 1 + 1e-6
    if area <= 0.5:
        assert aspect.min() < 0.8 and aspect.max() > 1.25


def test_crop_equals_the_resized_window():
    # A window on whole pixels, up- and downscaled.  Next to its border the antialiased kernel of
    # the crop sees one pixel of the scene beyond it, so only the inside is equal.
    scene = scenes(num=1)[0]
    window = data.Window(*(jnp.asarray(v / SIZE) for v in (8.0, 20.0, 32.0, 40.0)))
    for size in (16, 80):
        image = data.crop(scene, window, size)
        inside = np.s_[2:-2, 2:-2]
        expected = jax.image.resize(scene[8:40, 20:60], (size, size, 3), "linear", antialias=True)
        np.testing.assert_allclose(image[inside], expected[inside], atol=2e-6)
    full = data.Window(*(jnp.asarray(v) for v in (0.0, 0.0, 1.0, 1.0)))
    np.testing.assert_allclose(data.crop(scene, full, 16), resized(scene, 16), atol=2e-6)


def test_full_area_keeps_the_frame_up_to_photometric_edits(monkeypatch):
    monkeypatch.setattr(data, "photometric", lambda key, image: image)
    scene = scenes(num=1)[0]
    for mode in ("crop_resize", "crop_pad"):
        edited = compiled(data.edited_copy, output_size=16, crop_mode=mode)
        copy = edited(jax.random.key(3), scene, 1.0)
        np.testing.assert_allclose(copy, resized(scene, 16), atol=2e-6)


def test_crop_pad_shows_the_crop_at_its_size_on_one_colour(monkeypatch):
    monkeypatch.setattr(data, "photometric", lambda key, image: image)
    scene = scenes(num=1)[0]
    copy = compiled(data.edited_copy, output_size=SIZE, crop_mode="crop_pad")
    for seed in range(5):
        image = np.asarray(copy(jax.random.key(seed), scene, 0.25))
        colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        assert abs(counts.max() / SIZE**2 - 0.75) < 0.08
        pasted = (image != colours[counts.argmax()]).any(-1)
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        assert pasted[np.ix_(rows, columns)].all()
    with pytest.raises(UserError, match="crop_mode"):
        data.edited_copy(jax.random.key(0), scene, 0.5, crop_mode="crop")


def test_photometric_edits_fall_on_every_view_and_stay_in_range():
    scene = jnp.full((16, 16, 3), 0.5)
    edit = jax.jit(jax.vmap(data.photometric, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(0), 300)
    images = np.asarray(edit(keys, scene))
    mean = images.mean((1, 2, 3))
    # 0.5 gain + offset lies in [0.345, 0.655], and reaches towards both ends.
    assert 0.34 < mean.min() < 0.39 and 0.61 < mean.max() < 0.66
    np.testing.assert_allclose(images.std((1, 2, 3)), 0.02, rtol=0.15)
    ramp = jnp.broadcast_to(jnp.linspace(0.0, 1.0, 16)[:, None], (16, 16, 3))
    images = np.asarray(edit(keys, ramp))
    assert images.min() == 0.0 and images.max() == 1.0
    flipped = edit(keys, ramp.transpose(1, 0, 2))
    share = (np.asarray(flipped)[:, :, 0].mean((1, 2)) > 0.5).mean()
    assert 0.4 < share < 0.6


def test_training_views():
    make = compiled(data.make_training, num_views=5, output_size=16)
    training = make(jax.random.key(0), scenes())
    assert training.images.shape == (12, 5, 16, 16, 3)
    assert training.images.min() >= 0 and training.images.max() <= 1
    np.testing.assert_array_equal(training.scales[:, 0], 1.0)
    others = np.asarray(training.scales[:, 1:])
    assert others.min() >= 0.2 and others.max() < 1.0 and len(np.unique(others)) == others.size
    # View 0 shows the whole scene, as it is or mirrored: gain and offset do not change how it
    # correlates with the scene, another scene correlates less.
    small = np.asarray(jax.image.resize(scenes(), (12, 16, 16, 3), "linear", antialias=True))
    for i in range(12):
        both = [
            max(
                np.corrcoef(training.images[i, 0].ravel(), view.ravel())[0, 1]
                for view in (other, other[:, ::-1])
            )
            for other in small
        ]
        assert np.argmax(both) == i and both[i] > 0.95
    again = make(jax.random.key(0), scenes())
    np.testing.assert_array_equal(training.images, again.images)
    other = make(jax.random.key(1), scenes())
    assert np.abs(np.asarray(training.images - other.images)).mean() > 0.02


def test_evaluation_indices_and_contents(monkeypatch):
    monkeypatch.setattr(data, "photometric", lambda key, image: image)
    evaluation = compiled(data.make_evaluation, counts=COUNTS, output_size=SIZE)(
        jax.random.key(5), scenes()
    )
    assert evaluation.queries.shape == (10, SIZE, SIZE, 3)
    assert evaluation.references.shape == (8, SIZE, SIZE, 3)
    np.testing.assert_array_equal(evaluation.match, [0, 1, 2, 3] + [-1] * 6)
    np.testing.assert_array_equal(evaluation.hard_negative, [-1] * 4 + [4, 5, 6, 7] + [-1] * 2)
    used = np.asarray(scenes())[: COUNTS.scenes]
    same = functools.partial(np.testing.assert_allclose, atol=2e-6)
    targets = zip(evaluation.match, evaluation.hard_negative, strict=True)
    for query, (match, hard) in enumerate(targets):
        if match >= 0:
            # Reference: the full frame.  Query: a part of it.
            same(evaluation.references[match], used[match])
            assert np.abs(evaluation.queries[query] - used[match]).max() > 0.05
        else:
            # Hard negatives and unrelated queries are full frames.
            same(evaluation.queries[query], used[query])
        if hard >= 0:
            assert np.abs(evaluation.references[hard] - used[query]).max() > 0.05


def test_evaluation_is_pure_in_its_key_and_vmaps():
    make = functools.partial(data.make_evaluation, counts=COUNTS, output_size=8)
    one, two = jax.random.split(jax.random.key(2))
    seeds = jax.jit(jax.vmap(make, in_axes=(0, None)))(jnp.stack([one, two, one]), scenes())
    np.testing.assert_array_equal(seeds.queries[0], seeds.queries[2])
    np.testing.assert_array_equal(seeds.match[0], seeds.match[1])
    for pictures in (seeds.queries, seeds.references):
        assert np.abs(np.asarray(pictures[0] - pictures[1])).mean() > 0.01


def test_counts_follow_the_share():
    assert data.evaluation_counts() == (100, 100, 100, 50)
    assert data.evaluation_counts().scenes == 250
    for share in (0.0, 0.1, 0.3, 0.5, 0.8):
        counts = data.evaluation_counts(share)
        assert counts.positives == 100
        measured = counts.hard_negatives / (counts.hard_negatives + counts.positives)
        assert measured == pytest.approx(share, abs=0.005)
        assert counts.crop_references == max(100, counts.hard_negatives)
    with pytest.raises(UserError, match="share_hard_negatives"):
        data.evaluation_counts(1.0)
    with pytest.raises(UserError, match="250 test scenes, there are 12"):
        data.make_evaluation(jax.random.key(0), scenes())


def test_no_hard_negatives_leaves_the_references_as_they_are():
    counts = data.evaluation_counts(0.0, positives=4, unrelated=2)
    make = functools.partial(data.make_evaluation, counts=counts, output_size=8)
    evaluation = jax.eval_shape(make, jax.random.key(5), scenes())
    assert evaluation.queries.shape[0] == 6 and evaluation.references.shape[0] == 8
    assert data.evaluation_counts(0.5, positives=4, unrelated=2).crop_references == 4


@pytest.mark.parametrize(("size", "train", "test"), [(128, 141, 87), (64, 531, 305)])
def test_photo_scenes(size, train, test):
    photos = data.photo_scenes(size)
    assert photos.train.shape == (train, size, size, 3)
    assert photos.test.shape == (test, size, size, 3)
    assert photos.train.min() >= 0 and photos.train.max() <= 1
    patches = {patch.tobytes() for part in photos for patch in part}
    assert len(patches) == train + test, "a patch occurs twice"


def test_photo_scenes_share_no_pixel(monkeypatch):
    # Pictures whose pixels are numbered: a pixel in both parts would show.
    number = np.arange(200 * 300)
    image = np.stack([number // 65536, number // 256 % 256, number % 256], -1).reshape(200, 300, 3)
    sources = data.data.Photographs([image.astype(np.uint8)], ["numbered"])
    monkeypatch.setattr(data.data, "photographs", lambda: sources)
    monkeypatch.setattr(data, "_FLAT_PATCH", 0.0)
    train, test = (
        np.round(part * 255).astype(int) @ [65536, 256, 1] for part in data.photo_scenes(40)
    )
    assert train.size + test.size == 5 * 7 * 1600
    assert not set(train.ravel()) & set(test.ravel())
    with pytest.raises(UserError, match="500 pixels"):
        data.photo_scenes(500)


def test_tfds_scenes(monkeypatch):
    def arrays(name, split, data_dir, limit):
        return {"image": np.full((min(limit, 6), 8, 8, 3), 51, np.uint8)}

    monkeypatch.setattr(data.data, "tfds_arrays", arrays)
    parts = data.tfds_scenes("cifar10", "folder", num_train=6, num_test=2)
    assert parts.train.shape == (6, 8, 8, 3) and parts.test.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(parts.train, 0.2)
    with pytest.raises(UserError, match="has 6 pictures, 7 needed"):
        data.tfds_scenes("cifar10", "folder", num_train=7, num_test=2)
