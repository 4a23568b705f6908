"""Copies and hard negatives made from scenes: the offline stand-in for DISC21 and NDEC.

A scene is a square picture.  A view of it is an edited copy: a crop that keeps an area fraction
`scale` of the scene, resized to the network's input, then photometric edits.  The edits fall on
EVERY view, the full-frame one too: otherwise "clean" would give the original away and full-frame
hard negatives would be misjudged.

Scenes come from `render_scenes` (default), `photo_scenes` or `tfds_scenes`; all else accepts any
of them.  Functions with a key work under jit and under vmap over the key (seeds); sizes are
static.
"""

from __future__ import annotations

import functools
import os
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.common import data
from experiments.common.errors import UserError

CropMode = Literal["crop_resize", "crop_pad"]

# Area kept by a training crop, by the copy of a positive query, and by the reference of a hard
# negative (ASL card, "Offline stand-in").
TRAINING_AREA = (0.2, 1.0)
POSITIVE_AREA = (0.25, 0.8)
HARD_REFERENCE_AREA = (0.3, 0.6)

_LARGEST_ASPECT = 4.0 / 3.0
_SHAPES = 8
# A photograph's patch below this standard deviation (of 1) is empty sky or a black margin.
_FLAT_PATCH = 0.03
# Share of each photograph, from the left, that makes training scenes.
_TRAINING_SHARE = 0.6


class Training(NamedTuple):
    """Training views of C scenes: each scene is a class.

    Attributes:
      images: (C, V, H, W, 3) float32 in [0, 1]; view 0 is the full frame.
      scales: (C, V), area fraction of the scene that the view keeps; 1 for view 0.
    """

    images: Float[Array, "*seeds classes views height width 3"]
    scales: Float[Array, "*seeds classes views"]


class Evaluation(NamedTuple):
    """Queries against references.

    Attributes:
      queries: (Q, H, W, 3): the positives first, then the hard negatives, then the unrelated.
      references: (R, H, W, 3): the full frames first, then the crops.
      match: (Q,), index of the reference that the query is a copy of, or -1.
      hard_negative: (Q,), index of the reference that is a crop of the query, or -1.
    """

    queries: Float[Array, "*seeds queries height width 3"]
    references: Float[Array, "*seeds references height width 3"]
    match: Int[Array, "*seeds queries"]
    hard_negative: Int[Array, "*seeds queries"]


class Counts(NamedTuple):
    """How many scenes of each kind an evaluation takes; `scenes` is their sum.

    Attributes:
      positives: full-frame references, each with one copy among the queries.
      hard_negatives: queries that are the full scene of a cropped reference.
      crop_references: cropped references, with or without such a query.
      unrelated: queries of which no reference shows anything.
    """

    positives: int
    hard_negatives: int
    crop_references: int
    unrelated: int

    @property
    def scenes(self) -> int:
        """Scenes needed, each used once."""
        return self.positives + self.crop_references + self.unrelated


def evaluation_counts(
    share_hard_negatives: float = 0.5, *, positives: int = 100, unrelated: int = 50
) -> Counts:
    """Counts for a share of hard negatives among the related queries.

    `hard_negatives / (positives + hard_negatives) = share`, rounded, with the positives kept:
    recall keeps its denominator.  Up to a share of 1/2 the references stay the same too (as many
    crops as full frames, some without their query), so that only the queries get harder.  The
    default is the card's 100 positives, 100 hard negatives and 50 unrelated queries.

    Args:
      share_hard_negatives: in [0, 0.95].
      positives: >= 1.
      unrelated: >= 0.

    Returns:
      `Counts`.

    Raises:
      UserError: if the share is outside its range.
    """
    if not 0.0 <= share_hard_negatives <= 0.95:
        raise UserError(f"share_hard_negatives is {share_hard_negatives}, expected 0 to 0.95")
    hard = round(positives * share_hard_negatives / (1.0 - share_hard_negatives))
    return Counts(positives, hard, max(positives, hard), unrelated)


def render_scenes(key: Array, num: int, size: int = 64) -> Float[Array, "num size size 3"]:
    """Draws procedural scenes: two blended colours under stripes, and eight flat shapes.

    Background = blend of two random colours x (0.55 + 0.45 stripe), stripe = 0.5 + 0.5 sin(2 pi
    f u + phase), f ~ U(7, 9) cycles a side, any orientation.  The nearly fixed frequency shows
    how far a crop is magnified, as natural textures do; without it a small net does not learn
    the scale in minutes.  Shapes: disc, square or diamond, radius U(0.05, 0.12) of the side.

    Args:
      key: random key.
      num: number of scenes.
      size: side in pixels.

    Returns:
      (num, size, size, 3) float32 in [0, 1].

    Reference: ASL card, "Offline stand-in".
    """
    return jax.vmap(functools.partial(_render_scene, size=size))(jax.random.split(key, num))


def _render_scene(key: Array, size: int) -> Float[Array, "size size 3"]:
    key_background, key_shapes = jax.random.split(key)
    along = (jnp.arange(size) + 0.5) / size
    y, x = jnp.meshgrid(along, along, indexing="ij")

    def position_along(angle: Array) -> Array:
        return (x - 0.5) * jnp.cos(angle) + (y - 0.5) * jnp.sin(angle)

    draw = jax.random.uniform(key_background, (10,))
    colours = draw[:6].reshape(2, 3)
    blend_angle, stripe_angle, phase = 2 * jnp.pi * draw[6:9]
    frequency = 7.0 + 2.0 * draw[9]
    # The corners are sqrt(1/2) away from the centre along a diagonal: the blend stays in [0, 1].
    blend = (position_along(blend_angle) / jnp.sqrt(2.0) + 0.5)[..., None]
    background = (1 - blend) * colours[0] + blend * colours[1]
    wave = jnp.sin(2 * jnp.pi * frequency * position_along(stripe_angle) + phase)
    stripe = 0.5 + 0.5 * wave
    scene = background * (0.55 + 0.45 * stripe[..., None])

    draw = jax.random.uniform(key_shapes, (_SHAPES, 7))
    centres, shape_colours = draw[:, :2], draw[:, 2:5]
    radii = 0.05 + 0.07 * draw[:, 5]
    kinds = (3 * draw[:, 6]).astype(jnp.int32)
    dy = jnp.abs(y[..., None] - centres[:, 0])
    dx = jnp.abs(x[..., None] - centres[:, 1])
    norms = jnp.select([kinds == 0, kinds == 1], [jnp.hypot(dx, dy), jnp.maximum(dx, dy)], dx + dy)
    # Later shapes lie on top; -1 is the background.
    top = jnp.max(jnp.where(norms <= radii, jnp.arange(_SHAPES), -1), axis=-1)
    scene = jnp.where((top >= 0)[..., None], shape_colours[top], scene)
    return jnp.clip(scene, 0.0, 1.0).astype(jnp.float32)


class Window(NamedTuple):
    """A crop as shares of the scene's side: corner, height and width, each a scalar in [0, 1]."""

    top: Float[Array, ""]
    left: Float[Array, ""]
    height: Float[Array, ""]
    width: Float[Array, ""]


def random_window(key: Array, area: float | Float[Array, ""]) -> Window:
    """Draws a window of exactly the given area.

    The aspect ratio is log-uniform in [3/4, 4/3], narrowed where a window of that area would not
    fit the scene; so area 1 is the full frame.

    Args:
      key: random key.
      area: area fraction, in (0, 1].

    Returns:
      `Window` with height x width = area.
    """
    area = jnp.asarray(area, jnp.float32)
    limit = jnp.minimum(jnp.log(_LARGEST_ASPECT), -jnp.log(area))
    draw = jax.random.uniform(key, (3,))
    aspect = jnp.exp(limit * (2.0 * draw[0] - 1.0))
    height = jnp.minimum(jnp.sqrt(area / aspect), 1.0)
    width = jnp.minimum(jnp.sqrt(area * aspect), 1.0)
    return Window(draw[1] * (1.0 - height), draw[2] * (1.0 - width), height, width)


def crop(
    scene: Float[Array, "side side 3"], window: Window, output_size: int
) -> Float[Array, "size size 3"]:
    """Cuts a window out and resizes it to a square, antialiased bilinear.

    Args:
      scene: (S, S, 3).
      window: what to cut out.
      output_size: side of the result.

    Returns:
      (output_size, output_size, 3).
    """
    extent = jnp.stack([window.height, window.width]) * scene.shape[0]
    corner = jnp.stack([window.top, window.left]) * scene.shape[0]
    return _place(scene, output_size / extent, -corner * output_size / extent, output_size)


def _place(scene: Array, scale: Array, translation: Array, output_size: int) -> Array:
    return jax.image.scale_and_translate(
        scene,
        (output_size, output_size, scene.shape[-1]),
        (0, 1),
        scale,
        translation,
        method="linear",
        antialias=True,
    )


def _crop_on_canvas(key: Array, scene: Array, window: Window, output_size: int) -> Array:
    key_place, key_colour = jax.random.split(key)
    extent = jnp.stack([window.height, window.width]) * output_size
    corner = jax.random.uniform(key_place, (2,)) * (output_size - extent)
    scale = jnp.full((2,), output_size / scene.shape[0])
    source = jnp.stack([window.top, window.left]) * output_size
    pasted = _place(scene, scale, corner - source, output_size)
    centre = jnp.arange(output_size) + 0.5
    inside = (centre >= corner[:, None]) & (centre <= (corner + extent)[:, None])
    mask = (inside[0][:, None] & inside[1])[..., None]
    return jnp.where(mask, pasted, jax.random.uniform(key_colour, (3,)))


def photometric(key: Array, image: Float[Array, "height width 3"]) -> Array:
    """Gain U(.85, 1.15), offset U(-.08, .08), flip (1/2), noise of deviation 0.02, clip to [0, 1].

    Args:
      key: random key.
      image: (H, W, 3) in [0, 1].

    Returns:
      (H, W, 3) in [0, 1].
    """
    key_draw, key_noise = jax.random.split(key)
    draw = jax.random.uniform(key_draw, (3,))
    gain = 0.85 + 0.3 * draw[0]
    offset = -0.08 + 0.16 * draw[1]
    image = jnp.where(draw[2] < 0.5, image[:, ::-1], image)
    noise = 0.02 * jax.random.normal(key_noise, image.shape)
    return jnp.clip(gain * image + offset + noise, 0.0, 1.0)


def edited_copy(
    key: Array,
    scene: Float[Array, "side side 3"],
    area_fraction: float | Float[Array, ""],
    *,
    output_size: int = 32,
    crop_mode: CropMode = "crop_resize",
) -> Float[Array, "size size 3"]:
    """Makes an edited copy that keeps an area fraction of the scene.

    Args:
      key: random key.
      scene: (S, S, 3) in [0, 1].
      area_fraction: in (0, 1]; 1 keeps the full frame.
      output_size: side of the copy.
      crop_mode: "crop_resize" magnifies the crop to the whole copy; "crop_pad" pastes it at its
        own size on a canvas of one colour.

    Returns:
      (output_size, output_size, 3) float32 in [0, 1].
    """
    chex.assert_rank(scene, 3)
    key_window, key_canvas, key_photo = jax.random.split(key, 3)
    window = random_window(key_window, area_fraction)
    if crop_mode == "crop_resize":
        image = crop(scene, window, output_size)
    elif crop_mode == "crop_pad":
        image = _crop_on_canvas(key_canvas, scene, window, output_size)
    else:
        raise UserError(f"crop_mode {crop_mode!r}: choose crop_resize or crop_pad")
    return photometric(key_photo, image)


def _copies(
    key: Array, scenes: Array, areas: Array, output_size: int, crop_mode: CropMode
) -> Array:
    copy = functools.partial(edited_copy, output_size=output_size, crop_mode=crop_mode)
    return jax.vmap(copy)(jax.random.split(key, scenes.shape[0]), scenes, areas)


def make_training(
    key: Array,
    scenes: Float[Array, "classes side side 3"],
    num_views: int = 8,
    *,
    output_size: int = 32,
    crop_mode: CropMode = "crop_resize",
) -> Training:
    """Makes the views of each training scene, once for the whole training.

    Args:
      key: random key.
      scenes: (C, S, S, 3) in [0, 1].
      num_views: views a scene, view 0 with scale 1, the others U(0.2, 1).
      output_size: side of a view.
      crop_mode: see `edited_copy`.

    Returns:
      `Training`.
    """
    chex.assert_rank(scenes, 4)
    key_area, key_copy = jax.random.split(key)
    low, high = TRAINING_AREA
    classes = scenes.shape[0]
    scales = jax.random.uniform(key_area, (classes, num_views), minval=low, maxval=high)
    scales = scales.at[:, 0].set(1.0)

    def views(key: Array, scene: Array, areas: Array) -> Array:
        repeated = jnp.broadcast_to(scene, (num_views, *scene.shape))
        return _copies(key, repeated, areas, output_size, crop_mode)

    images = jax.vmap(views)(jax.random.split(key_copy, classes), jnp.asarray(scenes), scales)
    return Training(images, scales)


def make_evaluation(
    key: Array,
    scenes: Float[Array, "scenes side side 3"],
    counts: Counts | None = None,
    *,
    output_size: int = 32,
    crop_mode: CropMode = "crop_resize",
) -> Evaluation:
    """Makes the test: copies to find, hard negatives to refuse, and unrelated queries.

    A positive query is a crop (area U(.25, .8)) of a full-frame reference.  A hard negative is
    the FULL scene of a reference that is itself a crop (area U(.3, .6)): the same content, the
    wrong direction.  Every picture has its own photometric edits; each scene is used once.

    Args:
      key: random key.
      scenes: (N, S, S, 3) in [0, 1], unseen in training, N >= counts.scenes.
      counts: from `evaluation_counts`; by default the card's 100, 100 and 50.
      output_size: side of a picture.
      crop_mode: see `edited_copy`.

    Returns:
      `Evaluation`.

    Raises:
      UserError: if there are too few scenes.
    """
    chex.assert_rank(scenes, 4)
    counts = evaluation_counts() if counts is None else counts
    if scenes.shape[0] < counts.scenes:
        raise UserError(
            f"the evaluation needs {counts.scenes} test scenes, there are {scenes.shape[0]}:"
            " lower the number of positives or the share of hard negatives"
        )
    scenes = jnp.asarray(scenes)
    full, cropped, unrelated = jnp.split(
        scenes[: counts.scenes],
        (counts.positives, counts.positives + counts.crop_references),
    )
    key_area, key_copy = jax.random.split(key)
    draw = jax.random.uniform(key_area, (counts.positives + counts.crop_references,))
    low, high = POSITIVE_AREA
    positive_area = low + (high - low) * draw[: counts.positives]
    low, high = HARD_REFERENCE_AREA
    crop_area = low + (high - low) * draw[counts.positives :]
    num_full_queries = counts.hard_negatives + counts.unrelated
    queries = [full, cropped[: counts.hard_negatives], unrelated]
    references = [full, cropped]
    areas = [positive_area, jnp.ones(num_full_queries), jnp.ones(counts.positives), crop_area]
    # One batch for all pictures: they are one compiled function, not five.
    pictures = _copies(
        key_copy,
        jnp.concatenate(queries + references),
        jnp.concatenate(areas),
        output_size,
        crop_mode,
    )
    num_queries = counts.positives + num_full_queries
    query = jnp.arange(num_queries)
    is_positive = query < counts.positives
    is_hard = ~is_positive & (query < counts.positives + counts.hard_negatives)
    return Evaluation(
        queries=pictures[:num_queries],
        references=pictures[num_queries:],
        # Query i and reference i show the same scene, among positives and hard negatives alike.
        match=jnp.where(is_positive, query, -1).astype(jnp.int32),
        hard_negative=jnp.where(is_hard, query, -1).astype(jnp.int32),
    )


class Scenes(NamedTuple):
    """Scenes (N, S, S, 3) float32 in [0, 1] for training and, of other pixels, for the test."""

    train: np.ndarray
    test: np.ndarray


def photo_scenes(size: int = 128) -> Scenes:
    """Cuts the bundled photographs into square patches that do not overlap.

    The left 60 % of the columns of patches of each photograph are for training, the others for
    the test, so the two share no pixel.  Nearly uniform patches are left out.  Ten photographs
    give 141 + 87 scenes of 128 pixels, 531 + 305 of 64.

    Args:
      size: side of a patch in pixels.

    Returns:
      `Scenes`.

    Raises:
      UserError: if no patch fits.
    """
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    for image in data.photographs().images:
        rows, columns = image.shape[0] // size, image.shape[1] // size
        boundary = round(_TRAINING_SHARE * columns)
        for row in range(rows):
            for column in range(columns):
                window = np.s_[row * size : (row + 1) * size, column * size : (column + 1) * size]
                patch = image[window].astype(np.float32) / 255.0
                if patch.std(axis=(0, 1)).max() >= _FLAT_PATCH:
                    (train if column < boundary else test).append(patch)
    if not train or not test:
        raise UserError(f"no photograph holds two patches of {size} pixels")
    return Scenes(np.stack(train), np.stack(test))


def tfds_scenes(
    name: str, data_dir: str | os.PathLike[str], *, num_train: int, num_test: int
) -> Scenes:
    """Takes the pictures of a prepared TFDS set as scenes: its splits "train" and "test".

    Args:
      name: a set of square colour pictures of one size, such as "cifar10".
      data_dir: the TFDS folder, see `experiments.common.data.tfds_arrays`.
      num_train: training scenes, the first so many.
      num_test: test scenes, the first so many.

    Returns:
      `Scenes`.

    Raises:
      UserError: if the set is missing, too small, or of other pictures.
    """
    parts = []
    for split, num in (("train", num_train), ("test", num_test)):
        images = data.tfds_arrays(name, split, data_dir, limit=num)["image"]
        if images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise UserError(f"{name}: pictures are {images.shape[1:]}, expected (S, S, 3)")
        if len(images) < num:
            raise UserError(f"{name}: split {split!r} has {len(images)} pictures, {num} needed")
        parts.append(images.astype(np.float32) / 255.0)
    return Scenes(*parts)
