"""The real sets, DISC21 and NDEC, from a folder: training groups and evaluation batches.

The folder:

  training_images/*.jpg     each image is a class of its own
  negative_pair/*/{0,1}.jpg NDEC's hard negative pairs for training (optional)
  reference_images/*.jpg
  query_images_h5/*.jpg     or query_images/
  ground_truth.csv          query_id,reference_id; a header line is optional, a query without a
                            reference (a distractor or hard negative) has an empty one
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from experiments.asl import edits
from experiments.common import data
from experiments.common.errors import UserError

Kind = Literal["query", "reference", "training"]
HardNegativePairs = Literal["same_class", "separate", "off"]

LAYOUT = (
    "expected in --data_dir: training_images/*.jpg, reference_images/*.jpg, "
    "query_images_h5/*.jpg (or query_images/), ground_truth.csv (query_id,reference_id), "
    "and for NDEC negative_pair/*/{0,1}.jpg"
)
VIEWS_PER_IMAGE = 20
_QUERY_FOLDERS = ("query_images_h5", "query_images")
_THREADS = 8

# What a generator is for: keeps the streams of one seed apart.
_PERMUTATION, _VIEWS, _EDITS, _JITTER = range(4)


class Batch(TypedDict):
    """One training batch of G groups with K views each.

    images: (G, K, H, W, 3) uint8.  scales: (G, K) float32, content of each view, 1 for the
    original.  labels: (G,) int32, the class of the group.  direction_known: (G,) bool, whether
    the scales order the views of the group; false for the groups of hard negative pairs.
    """

    images: np.ndarray
    scales: np.ndarray
    labels: np.ndarray
    direction_known: np.ndarray


class _Class(NamedTuple):
    """The images that share a class, and whether the order of their content is known."""

    paths: tuple[Path, ...]
    direction_known: bool


class DiscTraining:
    """Training batches as a pure function of the step: a resumed run gets the same ones.

    Classes are a random permutation per epoch, a function of (seed, epoch).  A class has 20
    views per image: view 0 is the original, the others are edited copies, a function of (seed,
    class, view) as if they had been made once and stored.  Each step draws K views without
    replacement.

    The two images of a hard negative pair look alike and neither is a copy of the other:
      same_class: they share one class, a group holds views of both;
      separate: each is a class of its own;
      off: they are not used.
    Groups of pairs have `direction_known` false in the first two, so that the two differ in
    labels alone.

    Attributes:
      num_classes: number of classes.
      steps_per_epoch: whole batches in a permutation of the classes.
    """

    def __init__(
        self,
        data_dir: str | Path,
        input_size: int = 256,
        groups: int = 32,
        views: int = 4,
        seed: int = 0,
        hard_negative_pairs: HardNegativePairs = "same_class",
    ):
        """Lists the images; none is read yet.

        Args:
          data_dir: the folder.
          input_size: side of a view in pixels.
          groups: classes a batch (G).
          views: views a class in a batch (K), 1 to 20.
          seed: of everything random.
          hard_negative_pairs: what to do with `negative_pair/`.

        Raises:
          UserError: if a folder is missing or odd, or an argument does not fit it.
        """
        root = _root(data_dir)
        if not 1 <= views <= VIEWS_PER_IMAGE:
            raise UserError(f"{views} views a class: an image has {VIEWS_PER_IMAGE}")
        self._originals = _images(root, "training_images")
        classes = [_Class((path,), True) for path in self._originals]
        if hard_negative_pairs == "same_class":
            classes += [_Class(pair, False) for pair in _pairs(root)]
        elif hard_negative_pairs == "separate":
            classes += [_Class((path,), False) for pair in _pairs(root) for path in pair]
        elif hard_negative_pairs != "off":
            raise UserError(
                f"hard_negative_pairs {hard_negative_pairs!r}: choose same_class, separate or off"
            )
        if not 1 <= groups <= len(classes):
            raise UserError(f"{groups} groups a batch, but {root} has {len(classes)} classes")
        self._classes = classes
        self._size = input_size
        self._groups = groups
        self._views = views
        self._seed = seed
        self._pool = ThreadPoolExecutor(_THREADS)
        self.num_classes = len(classes)
        self.steps_per_epoch = len(classes) // groups

    def fetch(self, step: int) -> Batch:
        """Makes the batch of a step.

        Args:
          step: 0, 1, ...

        Returns:
          `Batch`.

        Raises:
          UserError: if an image cannot be read.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self._rng(_PERMUTATION, epoch).permutation(self.num_classes)
        labels = order[position * self._groups : (position + 1) * self._groups]
        groups = list(self._pool.map(lambda label: self._group(step, int(label)), labels))
        return Batch(
            images=np.stack([images for images, _ in groups]),
            scales=np.array([scales for _, scales in groups], np.float32),
            labels=labels.astype(np.int32),
            direction_known=np.array([self._classes[label].direction_known for label in labels]),
        )

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *purpose])

    def _group(self, step: int, label: int) -> tuple[np.ndarray, list[float]]:
        paths = self._classes[label].paths
        rng = self._rng(_VIEWS, step, label)
        chosen = [rng.permutation(VIEWS_PER_IMAGE) for _ in paths]
        originals = [data.read_image(path) for path in paths]
        images, scales = [], []
        for k in range(self._views):
            # The images of a pair take turns: a group of two views or more shows both.
            image, turn = k % len(paths), k // len(paths)
            view = int(chosen[image][turn])
            made = self._view(label, image * VIEWS_PER_IMAGE + view, originals[image])
            jitter = self._rng(_JITTER, step, label, k)
            images.append(edits.training_jitter(jitter, made.image))
            scales.append(made.scale)
        return np.stack(images), scales

    def _view(self, label: int, view: int, original: np.ndarray) -> edits.EditedView:
        if view % VIEWS_PER_IMAGE == 0:
            return edits.full_view(original, self._size)
        rng = self._rng(_EDITS, label, view)
        return edits.edited_view(rng, original, self._size, self._other)

    def _other(self, rng: np.random.Generator) -> np.ndarray:
        return data.read_image(self._originals[rng.integers(len(self._originals))])


class DiscEvaluation:
    """Queries, references and the pairs that are to be found.

    Attributes:
      query_ids: file names without suffix, sorted.
      reference_ids: file names without suffix, sorted.
      ground_truth: (P, 2) int64, rows (index of the query, index of the reference).
    """

    def __init__(self, data_dir: str | Path, input_size: int = 256):
        """Lists the images and reads the ground truth.

        Args:
          data_dir: the folder.
          input_size: side of a picture in pixels; several scales take several objects.

        Raises:
          UserError: if a folder or file is missing, or the ground truth does not fit.
        """
        root = _root(data_dir)
        folder = next((f for f in _QUERY_FOLDERS if (root / f).is_dir()), _QUERY_FOLDERS[0])
        self._paths = {
            "query": _images(root, folder),
            "reference": _images(root, "reference_images"),
            "training": _images(root, "training_images"),
        }
        self._size = input_size
        self.query_ids = [path.stem for path in self._paths["query"]]
        self.reference_ids = [path.stem for path in self._paths["reference"]]
        self.ground_truth = _ground_truth(
            root / "ground_truth.csv", self.query_ids, self.reference_ids
        )

    def count(self, kind: Kind) -> int:
        """How many pictures of a kind there are."""
        return len(self._paths[kind])

    def batches(self, kind: Kind, batch_size: int) -> Iterator[np.ndarray]:
        """Yields the pictures in the order of their ids.

        Args:
          kind: "query", "reference", or "training" for the training originals.
          batch_size: pictures a batch.

        Yields:
          (batch_size, H, W, 3) uint8; the last batch holds what is left.

        Raises:
          UserError: if a picture cannot be read.
        """
        paths = self._paths[kind]
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(paths), batch_size):
                yield np.stack(list(pool.map(self._read, paths[start : start + batch_size])))

    def _read(self, path: Path) -> np.ndarray:
        return edits.resize(data.read_image(path), self._size)


def _root(data_dir: str | Path) -> Path:
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data folder not found: {root}; {LAYOUT}")
    return root


def _images(root: Path, folder: str) -> list[Path]:
    try:
        paths = data.list_images(root / folder)
    except UserError as error:
        raise UserError(f"{error}; {LAYOUT}") from error
    stems = {path.stem for path in paths}
    if len(stems) < len(paths):
        raise UserError(f"{root / folder}: two files have the same name but for the suffix")
    return paths


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    folder = root / "negative_pair"
    if not folder.is_dir():
        raise UserError(
            f"hard negative pairs not found: {folder}; pass --hard_negative_pairs=off to train"
            f" without; {LAYOUT}"
        )
    pairs = []
    for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
        pair = (directory / "0.jpg", directory / "1.jpg")
        for path in pair:
            if not path.is_file():
                raise UserError(f"hard negative pair without its image: {path}; {LAYOUT}")
        pairs.append(pair)
    if not pairs:
        raise UserError(f"no hard negative pair in {folder}; {LAYOUT}")
    return pairs


def _ground_truth(path: Path, query_ids: list[str], reference_ids: list[str]) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"file not found: {path}; {LAYOUT}")
    queries = {name: index for index, name in enumerate(query_ids)}
    references = {name: index for index, name in enumerate(reference_ids)}
    pairs = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    for line, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (line == 1 and cells[0].lower() == "query_id"):
            continue
        if len(cells) != 2:
            raise UserError(f"{path} line {line}: expected query_id,reference_id, got {row}")
        query, reference = cells
        if query not in queries:
            raise UserError(f"{path} line {line}: no image of the query {query!r}")
        if not reference:
            continue
        if reference not in references:
            raise UserError(f"{path} line {line}: no image of the reference {reference!r}")
        pairs.append((queries[query], references[reference]))
    if not pairs:
        raise UserError(f"{path} names no pair of a query and its reference")
    if len(set(pairs)) < len(pairs):
        raise UserError(f"{path} names a pair twice")
    return np.array(pairs, np.int64)
