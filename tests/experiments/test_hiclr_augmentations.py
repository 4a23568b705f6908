import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.hiclr import augmentations, skeletons

FRAMES, JOINTS, PERSONS = 20, 25, 2
MIRROR = skeletons.NTU.mirror
DRAWS = 400


def _clip(seed=0, frames=FRAMES, joints=JOINTS):
    shape = (3, frames, joints, PERSONS)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _many(transform, x, draws=DRAWS):
    """One result for each of many keys."""
    return np.asarray(jax.jit(jax.vmap(transform, (0, None)))(_keys(draws), x))


def _key(seed):
    # The default generator takes longer to compile than the augmentations.
    return jax.random.key(seed, impl="rbg")


def _keys(draws):
    return jax.random.split(_key(7), draws)


def _is_half(events):
    """Whether a fair coin may have come up so often, at four standard deviations."""
    return abs(np.mean(events) - 0.5) < 4 * 0.5 / np.sqrt(len(events))


def test_crop_shows_a_window_of_the_mirrored_sequence():
    x = jnp.arange(12.0).reshape(1, 12, 1, 1)
    crop = jax.jit(augmentations.temporal_crop)
    before = [1, 0, *range(10)]
    after = [*range(2, 12), 11, 10]
    for start, expected in ((0, before), (2, range(12)), (4, after)):
        np.testing.assert_array_equal(crop(x, start)[0, :, 0, 0], expected)
    first = _many(augmentations.random_temporal_crop, x)[:, 0, 0, 0, 0]
    # The five starts are equally likely; frames 0 and 1 begin the window for two of them each.
    frequency = [np.mean(first == frame) for frame in (0, 1, 2)]
    np.testing.assert_allclose(frequency, [0.4, 0.4, 0.2], atol=4 * 0.5 / np.sqrt(DRAWS))
    # Too short to mirror a frame: nothing can move.
    short = x[:, :5]
    np.testing.assert_array_equal(augmentations.random_temporal_crop(_key(0), short), short)


def test_shear_mixes_the_coordinates():
    x = jnp.asarray([1.0, 10.0, 100.0]).reshape(3, 1, 1, 1)
    found = augmentations.shear(x, jnp.array([0.1, 0.2, 0.3]), jnp.array([0.4, 0.5, 0.6]))
    expected = [1 + 1 + 40, 0.2 + 10 + 50, 0.3 + 6 + 100]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


def test_random_shear_keeps_to_its_amplitude():
    basis = jnp.eye(3).reshape(3, 3, 1, 1)
    matrices = _many(functools.partial(augmentations.random_shear, amplitude=0.25), basis)
    matrices = matrices[:, :, :, 0, 0]
    others = matrices[:, ~np.eye(3, dtype=bool)]
    np.testing.assert_array_equal(matrices[:, np.arange(3), np.arange(3)], np.ones((DRAWS, 3)))
    assert np.abs(others).max() < 0.25
    np.testing.assert_allclose(np.std(others, axis=0), np.full(6, 0.25 / np.sqrt(3)), rtol=0.15)


@pytest.mark.parametrize(
    ("degrees", "image"),
    [
        # Where the axes x, y and z go; the second angle turns what the first has turned.
        ((90, 0, 0), ((1, 0, 0), (0, 0, -1), (0, 1, 0))),
        ((0, 90, 0), ((0, 0, 1), (0, 1, 0), (-1, 0, 0))),
        ((0, 0, 90), ((0, -1, 0), (1, 0, 0), (0, 0, 1))),
        ((90, 90, 0), ((0, 0, 1), (1, 0, 0), (0, 1, 0))),
    ],
)
def test_rotation_turns_the_axes(degrees, image):
    basis = jnp.eye(3).reshape(3, 3, 1, 1)
    found = augmentations.rotate(basis, jnp.asarray(degrees, jnp.float32))[:, :, 0, 0].T
    np.testing.assert_allclose(found, image, atol=1e-6)


def test_random_rotation_has_one_main_axis():
    basis = jnp.eye(3).reshape(3, 3, 1, 1)
    turns = _many(augmentations.random_rotation, basis)[:, :, :, 0, 0].astype(np.float64)
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-5
    )
    angle = np.rad2deg(np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert angle.max() < 30.1
    np.testing.assert_allclose(np.mean(angle), 15, atol=4 * 30 / np.sqrt(12 * DRAWS) + 0.1)
    wide = angle > 5
    axis = np.stack([turns[:, 1, 2], turns[:, 2, 0], turns[:, 0, 1]], axis=1)[wide]
    # All turn the same way, and about one axis a great deal more than about the others.
    main = np.argmax(np.abs(axis), axis=1)
    assert np.all(axis[np.arange(len(axis)), main] > 0)
    shares = np.bincount(main, minlength=3) / len(main)
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / len(main)))


@pytest.mark.parametrize("skeleton", skeletons.SKELETONS.values(), ids=skeletons.SKELETONS)
def test_flip_exchanges_sides_and_keeps_the_bones(skeleton):
    mirror, parents = np.asarray(skeleton.mirror), np.asarray(skeleton.parents)
    np.testing.assert_array_equal(mirror[mirror], np.arange(skeleton.joints))
    np.testing.assert_array_equal(parents[mirror], mirror[parents])
    assert tuple(mirror[list(skeleton.shoulders)]) == skeleton.shoulders[::-1]
    assert mirror[skeleton.center] == skeleton.center
    x = _clip(joints=skeleton.joints)
    flipped = augmentations.spatial_flip(x, skeleton.mirror)
    np.testing.assert_array_equal(flipped[:, :, mirror], x)


@pytest.mark.parametrize("skeleton", skeletons.SKELETONS.values(), ids=skeletons.SKELETONS)
def test_skeletons_are_trees(skeleton):
    joints = np.arange(skeleton.joints)
    (root,) = joints[np.asarray(skeleton.parents) == joints]
    reached = joints
    for _ in joints:
        reached = np.asarray(skeleton.parents)[reached]
    np.testing.assert_array_equal(reached, np.full_like(joints, root))
    assert root == skeleton.center
    adjacency = np.asarray(skeleton.adjacency())
    assert np.count_nonzero(adjacency) == 3 * skeleton.joints - 2


def test_graph_of_the_full_skeleton_is_the_authors():
    itself, away, towards = np.asarray(skeletons.NTU.adjacency())
    assert [np.count_nonzero(subset) for subset in (itself, away, towards)] == [25, 40, 8]
    expected = {(1, 0), (2, 3), (4, 5), (8, 9), (20, 1), (20, 2), (20, 4), (20, 8)}
    assert set(zip(*np.nonzero(towards), strict=True)) == expected
    masses = [itself.sum(), away.sum(), towards.sum()]
    np.testing.assert_allclose(masses, [8.95, 13.30, 2.75], rtol=1e-6)


@pytest.mark.parametrize(
    ("transform", "image"),
    [
        (functools.partial(augmentations.random_spatial_flip, mirror=MIRROR), "flipped"),
        (augmentations.random_time_flip, "reversed"),
    ],
)
def test_flips_happen_half_of_the_time(transform, image):
    x = _clip()
    expected = x[:, :, jnp.asarray(MIRROR)] if image == "flipped" else x[:, ::-1]
    found = _many(transform, x)
    changed = np.all(found == np.asarray(expected), axis=(1, 2, 3, 4))
    assert np.all(changed | np.all(found == np.asarray(x), axis=(1, 2, 3, 4)))
    assert _is_half(changed)


def test_noise_is_small_and_comes_half_of_the_time():
    x = _clip()
    added = _many(augmentations.random_noise, x) - np.asarray(x)
    noisy = np.any(added != 0, axis=(1, 2, 3, 4))
    assert _is_half(noisy)
    np.testing.assert_allclose(np.std(added[noisy]), 0.01, rtol=0.01)


def test_blur_is_the_unnormalised_convolution():
    x, sigma = _clip(), 1.7
    kernel = np.exp(-(np.arange(-7, 8) ** 2) / (2 * sigma**2))
    padded = np.pad(x, ((0, 0), (7, 7), (0, 0), (0, 0)))
    expected = sum(kernel[i] * padded[:, i : i + FRAMES] for i in range(15))
    found = augmentations.gaussian_blur(x, sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    found = augmentations.gaussian_blur(x, sigma, normalized=True)
    np.testing.assert_allclose(found, expected / kernel.sum(), rtol=1e-4, atol=1e-5)


def test_blur_amplifies_at_most_five_times_and_comes_half_of_the_time():
    x = jnp.ones((1, 15, 1, 1))
    gain = _many(augmentations.random_blur, x)[:, 0, 7, 0, 0]
    blurred = gain != 1
    # Below sigma = 0.11 the neighbours vanish in float32: one draw in two hundred.
    assert _is_half(blurred)
    assert 4.8 < gain.max() < 2 * np.sqrt(2 * np.pi)
    normal = _many(functools.partial(augmentations.random_blur, normalized=True), x)[:, 0, 7]
    np.testing.assert_allclose(normal, np.ones_like(normal), rtol=1e-5)


def test_axis_mask_hides_one_coordinate_half_of_the_time():
    hidden = _many(augmentations.random_axis_mask, _clip()) == 0
    whole = np.all(hidden, axis=(2, 3, 4))
    np.testing.assert_array_equal(whole, np.any(hidden, axis=(2, 3, 4)))
    count = whole.sum(axis=1)
    assert set(count) == {0, 1}
    assert _is_half(count)
    shares = whole[count == 1].mean(axis=0)
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / count.sum()))


@pytest.mark.parametrize(("ratio", "masked"), [(0.0, 0), (0.1, 2), (0.9, 22), (1.0, 25)])
def test_joint_mask_hides_as_many_joints_in_every_frame(ratio, masked):
    kept = augmentations.random_joint_mask(_key(0), frames=2000, joints=JOINTS, ratio=ratio)
    np.testing.assert_array_equal(np.sum(~kept, axis=1), np.full(2000, masked))
    share = masked / JOINTS
    deviation = 4 * np.sqrt(share * (1 - share) / 2000)
    np.testing.assert_allclose(np.mean(~kept, axis=0), share, atol=deviation + 1e-6)


def test_masked_joints_take_the_learnable_value():
    x = jnp.stack([_clip(0), _clip(1)])
    kept = augmentations.random_joint_mask(_key(1), frames=FRAMES, joints=JOINTS, ratio=0.1)
    found = np.asarray(augmentations.apply_joint_mask(x, kept, jnp.asarray(0.37)))
    shape = np.broadcast_to(np.asarray(kept)[:, :, None], x.shape)
    np.testing.assert_array_equal(found[shape], np.asarray(x)[shape])
    np.testing.assert_allclose(found[~shape], 0.37, rtol=1e-6)
    slope = jax.grad(lambda fill: jnp.sum(augmentations.apply_joint_mask(x, kept, fill)))(0.0)
    assert slope == 2 * 3 * PERSONS * FRAMES * 2


@pytest.mark.parametrize("per_frame", [False, True])
def test_adain_takes_over_the_statistics_of_the_style(per_frame):
    content, style = _clip(2), 3 * _clip(3) + 1
    found = augmentations.skele_adain(content=content, style=style, per_frame=per_frame)
    axes = 2 if per_frame else (1, 2)
    np.testing.assert_allclose(np.mean(found, axes), np.mean(style, axes), atol=1e-4)
    np.testing.assert_allclose(np.std(found, axes), np.std(style, axes), rtol=1e-4)
    same = augmentations.skele_adain(content=style, style=style, per_frame=per_frame)
    np.testing.assert_allclose(same, style, rtol=1e-4, atol=1e-5)


def test_adain_of_an_absent_person_is_finite():
    absent = jnp.zeros((3, FRAMES, JOINTS, PERSONS))

    def total(content):
        return jnp.sum(augmentations.skele_adain(content=content, style=_clip()) ** 2)

    assert np.all(np.isfinite(jax.grad(total)(absent)))


def test_streams_are_differences_in_time_and_along_bones():
    x = _clip()
    motion = augmentations.motion_stream(x)
    np.testing.assert_array_equal(motion[:, -1], np.zeros_like(motion[:, -1]))
    np.testing.assert_allclose(
        x[:, :1] + jnp.cumsum(motion, axis=1)[:, :-1], x[:, 1:], rtol=1e-4, atol=1e-5
    )
    bone = augmentations.bone_stream(x, skeletons.NTU.parents)
    np.testing.assert_array_equal(bone[:, :, 20], np.zeros_like(bone[:, :, 20]))
    np.testing.assert_allclose(bone[:, :, 3], x[:, :, 3] - x[:, :, 2], rtol=1e-6)
    # Neither sees where in the room a figure stands.
    np.testing.assert_allclose(
        augmentations.bone_stream(x + 2, skeletons.NTU.parents), bone, atol=1e-6
    )


def test_normal_set_applies_the_methods_that_are_asked_for():
    x = _clip()
    key = _key(3)

    def run(methods, key=key):
        return augmentations.normal(key, x, mirror=MIRROR, methods=methods)

    np.testing.assert_array_equal(run(""), x)
    expected = augmentations.random_rotation(jax.random.fold_in(key, 0), x)
    np.testing.assert_array_equal(run("2"), expected)
    expected = augmentations.random_time_flip(jax.random.fold_in(key, 1), expected)
    np.testing.assert_array_equal(run("26"), expected)
    with pytest.raises(ValueError, match="7"):
        run("17")


def test_views_grow_under_vmap_and_differ_between_samples():
    clips = jnp.stack([_clip()] * 4)

    @jax.jit
    @jax.vmap
    def view(key, x):
        return augmentations.normal(key, augmentations.basic(key, x), mirror=MIRROR)

    found = view(jax.random.split(_key(0), 4), clips)
    assert found.shape == clips.shape and found.dtype == clips.dtype
    assert np.all(np.isfinite(found))
    assert all(np.any(found[i] != found[j]) for i in range(4) for j in range(i))
