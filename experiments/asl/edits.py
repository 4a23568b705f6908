"""The edits that turn a photograph into a copy of it, on the host: PIL and NumPy.

The chain and its probabilities are the ASL card's ("Training set and the content scale").  All
randomness comes from the `numpy.random.Generator` that is passed in: the same generator state
makes the same picture.  Pictures are (H, W, 3) uint8.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Picture = np.ndarray
"""(H, W, 3) uint8."""

OtherPicture = Callable[[np.random.Generator], Picture]
"""Gives another picture of the collection, to be pasted over or under."""

# The pixel amounts of the chain (perspective, train-time padding) are meant at this side.
_NOMINAL_SIZE = 256
_LARGEST_ASPECT = 4.0 / 3.0
# Words of a text overlay are made of these.
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?#&"))


class EditedView(NamedTuple):
    """A view and the area fraction of the original that its crop kept.

    Attributes:
      image: (size, size, 3) uint8.
      scale: in (0, 1].
    """

    image: Picture
    scale: float


def full_view(image: Picture, size: int) -> EditedView:
    """View 0: the original, resized; scale 1."""
    return EditedView(resize(image, size), 1.0)


def edited_view(
    rng: np.random.Generator, image: Picture, size: int, other: OtherPicture
) -> EditedView:
    """Makes one edited copy by the whole chain.

    Crop to a share U(0.2, 1) of the area [1]; rotation [.3], pixelisation [.3], shuffled pixels
    [.3], perspective [.3], padding [.3], a small picture on top [.3], colour jitter [.8], blur
    [1], grey [.3], mirror [.5], emoji [.3], text twice [.3 each], pasted onto another picture
    [.2]; resize.

    Args:
      rng: generator; advanced.
      image: the original.
      size: side of the copy.
      other: gives the pictures that are pasted over or under.

    Returns:
      `EditedView`.
    """
    image, scale = random_resized_crop(rng, image, size)
    chain: tuple[tuple[float, Callable[[np.random.Generator, Picture], Picture]], ...] = (
        (0.3, rotate),
        (0.3, pixelise),
        (0.3, shuffle_pixels),
        (0.3, perspective),
        (0.3, pad),
        (0.3, functools.partial(overlay_picture, other=other)),
        (0.8, colour_jitter),
        (1.0, blur),
        (0.3, grey),
        (0.5, mirror),
        (0.3, overlay_emoji),
        (0.3, overlay_text),
        (0.3, overlay_text),
        (0.2, functools.partial(paste_onto, other=other)),
    )
    for probability, edit in chain:
        if rng.random() < probability:
            image = edit(rng, image)
    return EditedView(resize(image, size), scale)


def training_jitter(rng: np.random.Generator, image: Picture) -> Picture:
    """Mirror [.5], then pad by 10 pixels of 256 and cut a random window of the old size."""
    if rng.random() < 0.5:
        image = mirror(rng, image)
    height, width = image.shape[:2]
    margin = max(1, round(10 * height / _NOMINAL_SIZE))
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    top, left = rng.integers(0, 2 * margin + 1, size=2)
    return padded[top : top + height, left : left + width]


def resize(image: Picture, size: int) -> Picture:
    """Resizes to (size, size, 3), bilinear and antialiased; the aspect ratio is not kept."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def random_resized_crop(
    rng: np.random.Generator, image: Picture, size: int
) -> tuple[Picture, float]:
    """Cuts a window of an area share U(0.2, 1) and resizes it.

    The aspect ratio (relative to the picture's) is log-uniform in [3/4, 4/3], narrowed where the
    window would not fit: every draw gives its area, none has to be repeated.

    Args:
      rng: generator; advanced.
      image: (H, W, 3).
      size: side of the result.

    Returns:
      (size, size, 3) and the area fraction that was drawn, below 1.
    """
    height, width = image.shape[:2]
    area = rng.uniform(0.2, 1.0)
    limit = min(np.log(_LARGEST_ASPECT), -np.log(area))
    aspect = np.exp(rng.uniform(-limit, limit))
    rows = min(height, max(1, round(height * np.sqrt(area / aspect))))
    columns = min(width, max(1, round(width * np.sqrt(area * aspect))))
    top = rng.integers(0, height - rows + 1)
    left = rng.integers(0, width - columns + 1)
    window = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    return resize(window, size), float(area)


def rotate(rng: np.random.Generator, image: Picture) -> Picture:
    """Turns by U(-50, 50) degrees within the frame; the corners become black."""
    angle = rng.uniform(-50.0, 50.0)
    return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))


def pixelise(rng: np.random.Generator, image: Picture) -> Picture:
    """Reduces to a share U(0.1, 1) of the side and enlarges again, in blocks."""
    height, width = image.shape[:2]
    ratio = rng.uniform(0.1, 1.0)
    small = Image.fromarray(image).resize(
        (max(1, round(width * ratio)), max(1, round(height * ratio))), Image.Resampling.BILINEAR
    )
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def shuffle_pixels(rng: np.random.Generator, image: Picture) -> Picture:
    """Permutes the pixels at a share U(0, 0.4) of the positions among themselves."""
    pixels = image.reshape(-1, 3).copy()
    chosen = rng.permutation(len(pixels))[: round(rng.uniform(0.0, 0.4) * len(pixels))]
    pixels[chosen] = pixels[rng.permutation(chosen)]
    return pixels.reshape(image.shape)


def perspective(rng: np.random.Generator, image: Picture) -> Picture:
    """Moves each corner by N(0, sigma), sigma = U(0, 50) pixels of 256; outside is black.

    The moves are clipped at a third of the side: the corners cannot change places.
    """
    height, width = image.shape[:2]
    sigma = rng.uniform(0.0, 50.0) / _NOMINAL_SIZE
    moves = np.clip(rng.normal(0.0, sigma, size=(4, 2)), -1 / 3, 1 / 3)
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    source = corners * (width, height)
    target = (corners + moves) * (width, height)
    # The projective map that takes target to source, which PIL wants: 8 equations, 8 unknowns.
    rows, right = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        right += [u, v]
    coefficients = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    moved = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        tuple(coefficients.tolist()),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(moved)


def pad(rng: np.random.Generator, image: Picture) -> Picture:
    """Adds a border of a random colour, a share U(0, 0.1) of the height and of the width."""
    height, width = image.shape[:2]
    rows, columns = round(height * rng.uniform(0, 0.1)), round(width * rng.uniform(0, 0.1))
    canvas = np.empty((height + 2 * rows, width + 2 * columns, 3), np.uint8)
    canvas[:] = rng.integers(0, 256, size=3)
    canvas[rows : rows + height, columns : columns + width] = image
    return canvas


def overlay_picture(rng: np.random.Generator, image: Picture, *, other: OtherPicture) -> Picture:
    """Lays another picture, of a side U(0.1, 0.4) of this one's, on top at a random place."""
    height, width = image.shape[:2]
    share = rng.uniform(0.1, 0.4)
    small = _resize_to(other(rng), max(1, round(height * share)), max(1, round(width * share)))
    return _paste(rng, small, onto=image)


def paste_onto(rng: np.random.Generator, image: Picture, *, other: OtherPicture) -> Picture:
    """Pastes this picture, at a side U(0.5, 0.9), onto another one at a random place."""
    height, width = image.shape[:2]
    share = rng.uniform(0.5, 0.9)
    small = _resize_to(image, max(1, round(height * share)), max(1, round(width * share)))
    return _paste(rng, small, onto=_resize_to(other(rng), height, width))


def colour_jitter(rng: np.random.Generator, image: Picture) -> Picture:
    """Changes brightness and contrast by U(.5, 1.5), saturation U(.7, 1.3), hue U(-.2, .2) turns.

    In a random order, as torchvision does.
    """

    def hue(picture: Image.Image, shift: float) -> Image.Image:
        bands = list(picture.convert("HSV").split())
        bands[0] = bands[0].point(lambda value: (value + round(255 * shift)) % 256)
        return Image.merge("HSV", bands).convert("RGB")

    def by(enhancer: Callable) -> Callable[[Image.Image, float], Image.Image]:
        return lambda picture, factor: enhancer(picture).enhance(factor)

    changes = (
        (by(ImageEnhance.Brightness), rng.uniform(0.5, 1.5)),
        (by(ImageEnhance.Contrast), rng.uniform(0.5, 1.5)),
        (by(ImageEnhance.Color), rng.uniform(0.7, 1.3)),
        (hue, rng.uniform(-0.2, 0.2)),
    )
    picture = Image.fromarray(image)
    for index in rng.permutation(len(changes)):
        change, amount = changes[index]
        picture = change(picture, amount)
    return np.asarray(picture)


def blur(rng: np.random.Generator, image: Picture) -> Picture:
    """Gaussian blur, sigma U(0.1, 2) pixels."""
    radius = rng.uniform(0.1, 2.0)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def grey(rng: np.random.Generator, image: Picture) -> Picture:
    """Removes the colour."""
    del rng
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def mirror(rng: np.random.Generator, image: Picture) -> Picture:
    """Swaps left and right."""
    del rng
    return np.ascontiguousarray(image[:, ::-1])


def overlay_emoji(rng: np.random.Generator, image: Picture) -> Picture:
    """Draws a round face of a diameter U(0.15, 0.4) of the shorter side at a random place."""
    height, width = image.shape[:2]
    size = max(4, round(min(height, width) * rng.uniform(0.15, 0.4)))
    left = rng.integers(0, max(1, width - size + 1))
    top = rng.integers(0, max(1, height - size + 1))
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return (left + x0 * size, top + y0 * size, left + x1 * size, top + y1 * size)

    draw.ellipse(box(0, 0, 1, 1), fill=(255, int(rng.integers(180, 230)), 40))
    draw.ellipse(box(0.25, 0.28, 0.38, 0.45), fill=(60, 40, 20))
    draw.ellipse(box(0.62, 0.28, 0.75, 0.45), fill=(60, 40, 20))
    # A smile or a frown.
    if rng.random() < 0.5:
        draw.arc(box(0.25, 0.35, 0.75, 0.8), 20, 160, fill=(60, 40, 20), width=max(1, size // 12))
    else:
        draw.arc(box(0.25, 0.6, 0.75, 1.0), 200, 340, fill=(60, 40, 20), width=max(1, size // 12))
    return np.asarray(picture)


def overlay_text(rng: np.random.Generator, image: Picture) -> Picture:
    """Writes 3 to 12 random characters, U(0.08, 0.25) of the height, in a random colour."""
    height, width = image.shape[:2]
    text = "".join(rng.choice(_LETTERS, size=rng.integers(3, 13)))
    size = max(4, round(height * rng.uniform(0.08, 0.25)))
    colour = tuple(int(channel) for channel in rng.integers(0, 256, size=3))
    place = (float(rng.uniform(0.0, 0.7) * width), float(rng.uniform(0.0, 0.9) * height))
    picture = Image.fromarray(image)
    ImageDraw.Draw(picture).text(place, text, fill=colour, font=_font(size))
    return np.asarray(picture)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _resize_to(image: Picture, height: int, width: int) -> Picture:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _paste(rng: np.random.Generator, small: Picture, *, onto: Picture) -> Picture:
    canvas = onto.copy()
    rows, columns = small.shape[:2]
    top = rng.integers(0, canvas.shape[0] - rows + 1)
    left = rng.integers(0, canvas.shape[1] - columns + 1)
    canvas[top : top + rows, left : left + columns] = small
    return canvas
