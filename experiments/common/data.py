"""Where arrays come from: embedded sources, prepared TFDS folders, .npz files and image folders.

Nothing here downloads and nothing here writes.  What is missing or broken is a `UserError`
that names the file and says what to do.  Libraries are imported by the function that needs
them: importing this module costs nothing.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# The colour photographs inside the wheels.  motorcycle_right is left out: it is the left one,
# seen from 19 cm beside it, and would leak between training and test.
_SKIMAGE_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
_SKLEARN_PHOTOGRAPHS = ("china.jpg", "flower.jpg")


class Digits(NamedTuple):
    """scikit-learn's digits: `images` (1797, 8, 8) float32 in [0, 1], `labels` (1797,) int32."""

    images: np.ndarray
    labels: np.ndarray


class Photographs(NamedTuple):
    """Colour photographs: `images` list of (H, W, 3) uint8, `names` their file stems."""

    images: list[np.ndarray]
    names: list[str]


def digits() -> Digits:
    """Returns the 1797 handwritten digits of scikit-learn, 8x8, grey values x / 16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Digits(
        images=(bunch.images / 16.0).astype(np.float32), labels=bunch.target.astype(np.int32)
    )


def photographs() -> Photographs:
    """Returns the colour photographs inside the wheels of scikit-image and scikit-learn.

    Ten pictures, in a fixed order; a release that leaves one out makes the list shorter.

    Raises:
      UserError: if none is found, or one cannot be read.
    """
    from importlib.util import find_spec

    images, names = [], []
    for package, folder, files in (
        ("skimage", "data", _SKIMAGE_PHOTOGRAPHS),
        ("sklearn", "datasets/images", _SKLEARN_PHOTOGRAPHS),
    ):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for file in files:
            path = Path(spec.origin).parent / folder / file
            if path.is_file():
                images.append(read_image(path))
                names.append(path.stem)
    if not images:
        raise UserError("no bundled photograph found: install scikit-image and scikit-learn")
    return Photographs(images, names)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file as RGB.

    Returns:
      (H, W, 3) uint8.

    Raises:
      UserError: if the file is missing or is not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    # A broken PNG raises SyntaxError, a giant one DecompressionBombError (no OSError either).
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {_one_line(error)}") from error


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the .jpg, .jpeg and .png files directly in a folder, sorted by name.

    Raises:
      UserError: if the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"image folder not found: {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"no {'/'.join(IMAGE_SUFFIXES)} file in the image folder {folder}")
    return paths


def load_npz(
    path: str | os.PathLike[str],
    spec: Mapping[str, tuple[Sequence[int | None], str]],
) -> dict[str, np.ndarray]:
    """Reads and checks arrays of an .npz file; pickled objects are refused.

    Args:
      path: the file.
      spec: for each array its shape, with None or -1 where any length is right, and the letters
        of the numpy dtype kinds that are right ("f", "iu", "U", "b", ...).

    Returns:
      The arrays named in `spec`; others in the file are left unread.

    Raises:
      UserError: if the file or an array is missing, unreadable, has another shape or kind, or
        holds NaN or infinity.
    """
    if not os.path.isfile(path):
        raise UserError(f"file not found: {path}")
    # What numpy, zipfile and zlib raise on a damaged archive, or on a pickled array.
    broken = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
    arrays = {}
    try:
        archive = np.load(path, allow_pickle=False)
    except broken as error:
        raise UserError(f"{path} is not a readable .npz file: {_one_line(error)}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path} holds one bare array, an .npz archive is needed")
    with archive:
        for name, (shape, kinds) in spec.items():
            if name not in archive.files:
                have = ", ".join(sorted(archive.files))
                raise UserError(f"{path} has no array {name!r}; it holds: {have}")
            try:
                array = archive[name]
            except broken as error:
                message = f"{path}: array {name!r} is unreadable: {_one_line(error)}"
                raise UserError(message) from error
            if not isinstance(array, np.ndarray):
                raise UserError(f"{path}: {name!r} is not a numpy array")
            _check_array(f"{path}: array {name!r}", array, shape, kinds)
            arrays[name] = array
    return arrays


def _check_array(what: str, array: np.ndarray, shape: Sequence[int | None], kinds: str) -> None:
    wanted = tuple(None if size in (None, -1) else size for size in shape)
    fits = len(wanted) == array.ndim and all(
        size is None or size == have for size, have in zip(wanted, array.shape, strict=True)
    )
    if not fits:
        pattern = "(" + ", ".join("any" if size is None else str(size) for size in wanted) + ")"
        raise UserError(f"{what} has shape {array.shape}, expected {pattern}")
    if array.dtype.kind not in kinds:
        raise UserError(f"{what} has dtype {array.dtype}, expected a kind of {kinds!r}")
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise UserError(f"{what} holds NaN or infinity")


def tfds_arrays(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str],
    limit: int | None = None,
) -> dict[str, np.ndarray]:
    """Reads an image set that TFDS has prepared in the array_record format, without TensorFlow.

    The builder is restored from the metadata in the folder, so neither the set's own code nor
    its download is reachable from here and nothing is written.

    Args:
      name: a TFDS name, with or without configuration and version: "cifar10", "cifar10:3.0.2".
      split: a split, or a TFDS slice of one: "train", "test", "train[:10%]".
      data_dir: the folder that holds `<name>/[<config>/]<version>/dataset_info.json`.
      limit: the first so many records only.

    Returns:
      {"image": (N, H, W, C) uint8, "label": (N,) int32}; "label" only where the set has one.

    Raises:
      UserError: if the folder, the set, the split or a file is missing, or a record is corrupt.
    """
    import tensorflow_datasets as tfds

    folder = _prepared_folder(name, data_dir)
    try:
        builder = tfds.builder_from_directory(str(folder))
        known = sorted(builder.info.splits)
    except Exception as error:
        raise UserError(f"unreadable TFDS metadata in {folder}: {_one_line(error)}") from error
    if re.split(r"[\[+]", split, maxsplit=1)[0] not in known:
        raise UserError(f"{folder} has no split {split!r}; it has: {', '.join(known)}")
    try:
        source = builder.as_data_source(split=split)
        count = len(source)
    # TFDS answers a missing shard, a slice that it cannot parse and a foreign file format with
    # exceptions of its own and of array_record: all of them are about this folder.
    except Exception as error:
        message = f"cannot open split {split!r} of the TFDS folder {folder}: {_one_line(error)}"
        raise UserError(message) from error
    if limit is not None:
        count = min(count, limit)
    if count == 0:
        raise UserError(f"split {split!r} of {folder} has no record")
    columns: dict[str, np.ndarray] = {}
    for index in range(count):
        try:
            record = source[index]
            if index == 0:
                columns = _columns(record, count)
            for key, column in columns.items():
                column[index] = record[key]
        except UserError:
            raise
        except Exception as error:
            message = f"record {index} of split {split!r} in {folder} is corrupt or unlike the"
            raise UserError(f"{message} first: {_one_line(error)}") from error
    return columns


def _columns(record: Mapping[str, object], count: int) -> dict[str, np.ndarray]:
    if not isinstance(record.get("image"), np.ndarray):
        raise UserError(f"not an image set: its records hold {', '.join(sorted(record))}")
    image = np.asarray(record["image"])
    columns = {"image": np.empty((count, *image.shape), image.dtype)}
    if "label" in record:
        columns["label"] = np.empty((count,), np.int32)
    return columns


def _prepared_folder(name: str, data_dir: str | os.PathLike[str]) -> Path:
    base, _, version = name.partition(":")
    root = Path(data_dir).expanduser() / base
    how = (
        'prepare it on a machine with a network by: python -c "import tensorflow_datasets as t; '
        f"t.builder('{base}', data_dir='{data_dir}', file_format='array_record')"
        '.download_and_prepare()"'
    )
    if version:
        candidates = [root / version]
    else:
        candidates = sorted(root.iterdir(), key=_version_key) if root.is_dir() else []
    ready = [path for path in candidates if (path / "dataset_info.json").is_file()]
    if not ready:
        where = root / (version or "<version>") / "dataset_info.json"
        raise UserError(f"TFDS set {name!r} not found: no {where}; {how}")
    folder = ready[-1]
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        file_format = info.get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"unreadable TFDS metadata in {folder}: {_one_line(error)}") from error
    if file_format != "array_record":
        raise UserError(f"{folder} is in the format {file_format}, not array_record; {how}")
    return folder


def _version_key(path: Path) -> tuple[int, ...]:
    numbers = path.name.split(".")
    return tuple(int(n) for n in numbers) if all(n.isdigit() for n in numbers) else (-1,)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
