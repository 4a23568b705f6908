"""Where the clips of a run come from, by --dataset."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import data, loop
from experiments.common.errors import UserError
from experiments.hiclr import settings, skeletons, synthetic
from experiments.hiclr.synthetic import Clips

# Cross-subject protocol of both Kinect sets.
TRAIN_SUBJECTS = (1, 3, 5, 7, 9)
# All seeds see one procedural set, as they see one recorded set.
_SET_KEY = 0


class Batch(NamedTuple):
    """What one step of pre-training sees.

    Attributes:
      x: Clips (N, C, T, V, M).
      epoch: Which pass through the training set this would be, from 0; scalar.
    """

    x: jax.Array
    epoch: jax.Array


class Source(NamedTuple):
    """Data of one run.

    Attributes:
      train: Training clips.
      test: Test clips.
      skeleton: Which joint is which.
      num_classes: Classes.
      steps_per_epoch: Whole batches in a pass.
      batches: For `loop.fit`.
    """

    train: Clips
    test: Clips
    skeleton: skeletons.Skeleton
    num_classes: int
    steps_per_epoch: int
    batches: loop.Resident


def open_source(config: Any) -> Source:
    """The data of a run.

    Args:
      config: The experiment's settings.

    Returns:
      The source.

    Raises:
      UserError: A file is missing or damaged, or smaller than a batch.
    """
    if config.dataset == settings.SYNTHETIC:
        names = ("num_train", "num_test", "frames", "persons", "cycles", "corrupted", "corruption")
        make = functools.partial(synthetic.make, **{name: getattr(config, name) for name in names})
        train, test = loop.once(make)(jax.random.key(_SET_KEY))
        skeleton, num_classes = skeletons.NTU, synthetic.NUM_CLASSES
    elif config.dataset == settings.NTU:
        train, test = (
            read_ntu(config.data_dir, split, config.frames) for split in ("train", "val")
        )
        skeleton = skeletons.NTU
        num_classes = int(train.y.max()) + 1
        if test.y.max() >= num_classes:
            raise UserError(
                f"{config.data_dir}: val_label.npy has the label {test.y.max()}, which no "
                f"training clip has"
            )
    else:
        skeleton = skeletons.SKELETONS[config.dataset]
        train, test = read_kinect(
            Path(config.data_dir) / f"{config.dataset}.npz",
            skeleton,
            frames=config.frames,
            align=config.align,
        )
        num_classes = int(max(train.y.max(), test.y.max())) + 1
    num_train = len(train.y)
    if num_train < config.batch_size:
        raise UserError(f"--batch_size={config.batch_size}: there are {num_train} training clips")
    train, test = (Clips(jnp.asarray(c.x), jnp.asarray(c.y, jnp.int32)) for c in (train, test))
    steps_per_epoch = num_train // config.batch_size
    sample = functools.partial(
        _sample, batch_size=config.batch_size, steps_per_epoch=steps_per_epoch
    )
    return Source(
        train=train,
        test=test,
        skeleton=skeleton,
        num_classes=num_classes,
        steps_per_epoch=steps_per_epoch,
        batches=loop.Resident(train.x, sample),
    )


def _sample(
    x: jax.Array, key: jax.Array, step: jax.Array, *, batch_size: int, steps_per_epoch: int
) -> Batch:
    """Different clips within a batch, drawn anew for each."""
    chosen = jax.random.permutation(key, len(x))[:batch_size]
    return Batch(x[chosen], step // steps_per_epoch)


def read_kinect(
    path: Path, skeleton: skeletons.Skeleton, *, frames: int, align: bool
) -> tuple[Clips, Clips]:
    """MSR Action3D or UTKinect, split by subjects.

    Args:
      path: The .npz: positions (N, T, V, 3), lengths, action and subject (N,).
      skeleton: Which joint is which.
      frames: Frames to which each clip is resized.
      align: Turn each figure until its shoulders lie along x.

    Returns:
      Clips of subjects 1, 3, 5, 7, 9 and of the others.

    Raises:
      UserError: The file is missing or damaged.
    """
    spec = {
        "positions": ((None, None, skeleton.joints, 3), "f"),
        "lengths": ((None,), "iu"),
        "action": ((None,), "iu"),
        "subject": ((None,), "iu"),
    }
    arrays = data.load_npz(path, spec)
    positions, lengths = arrays["positions"], arrays["lengths"]
    for name in ("lengths", "action", "subject"):
        if len(arrays[name]) != len(positions):
            raise UserError(f"{path}: {len(positions)} clips but {len(arrays[name])} of {name!r}")
    if lengths.min() < 1 or lengths.max() > positions.shape[1]:
        raise UserError(f"{path}: 'lengths' go from 1 to {positions.shape[1]}")
    if arrays["action"].min() < 0:
        raise UserError(f"{path}: labels start at 0")
    clips = []
    for number, (clip, length) in enumerate(zip(positions, lengths, strict=True)):
        # Where the sensor lost the figure, the file holds zeros.
        seen = clip[:length][np.any(clip[:length] != 0, axis=(1, 2))]
        if not len(seen):
            raise UserError(f"{path}: clip {number} holds no figure")
        relative = resized(seen - seen[:, skeleton.center, None], frames)
        clips.append(aligned(relative, skeleton.shoulders) if align else relative)
    x = np.stack(clips).transpose(0, 3, 1, 2)[..., None].astype(np.float32)
    known = np.isin(arrays["subject"], TRAIN_SUBJECTS)
    if known.all() or not known.any():
        raise UserError(f"{path}: needs subjects in {TRAIN_SUBJECTS} and others")
    y = arrays["action"]
    return Clips(x[known], y[known]), Clips(x[~known], y[~known])


def resized(clip: np.ndarray, frames: int) -> np.ndarray:
    """Linear interpolation along time, pixel centres at half integers.

    Args:
      clip: (length, joints, 3).
      frames: Wanted length.

    Returns:
      (frames, joints, 3).
    """
    place = (np.arange(frames) + 0.5) * len(clip) / frames - 0.5
    place = np.clip(place, 0, len(clip) - 1)
    before = np.floor(place).astype(int)
    after = np.minimum(before + 1, len(clip) - 1)
    share = (place - before)[:, None, None]
    return (1 - share) * clip[before] + share * clip[after]


def aligned(clip: np.ndarray, shoulders: tuple[int, int]) -> np.ndarray:
    """Turns each frame about y until the line from shoulder A to shoulder B lies along x.

    The authors give a whole clip one sense of rotation, by the sum of the lines' depths.

    Args:
      clip: (frames, joints, 3).
      shoulders: Joints A and B.

    Returns:
      (frames, joints, 3).
    """
    line = (clip[:, shoulders[1]] - clip[:, shoulders[0]]) * (1, 0, 1)
    cosine = line[:, 0] / (np.linalg.norm(line, axis=1) + 1e-4)
    angle = np.arccos(cosine) * (-1 if line[:, 2].sum() >= 0 else 1)
    cos, sin, zero, one = np.cos(angle), np.sin(angle), np.zeros(len(clip)), np.ones(len(clip))
    turn = np.stack([cos, zero, -sin, zero, one, zero, sin, zero, cos], axis=1).reshape(-1, 3, 3)
    return np.einsum("tab,tvb->tva", turn, clip)


def read_ntu(folder: str, split: str, frames: int) -> Clips:
    """One split in the authors' layout, already relative, resized and aligned.

    Args:
      folder: Holds `<split>_position.npy` (N, 3, T, 25, M) and `<split>_label.npy` (N,).
      split: "train" or "val".
      frames: T that is expected.

    Returns:
      The clips.

    Raises:
      UserError: A file is missing or damaged.
    """
    x = _read_npy(Path(folder) / f"{split}_position.npy", "f")
    y = _read_npy(Path(folder) / f"{split}_label.npy", "iu")
    joints = skeletons.NTU.joints
    if x.ndim != 5 or x.shape[1] != 3 or x.shape[3] != joints:
        raise UserError(f"{split}_position.npy has shape {x.shape}, not (N, 3, T, {joints}, M)")
    if x.shape[2] != frames:
        raise UserError(f"{split}_position.npy has {x.shape[2]} frames: say --frames={x.shape[2]}")
    if y.shape != (len(x),) or not len(x):
        raise UserError(f"{split}_label.npy has shape {y.shape}; there are {len(x)} clips")
    if y.min() < 0:
        raise UserError(f"{split}_label.npy: labels start at 0")
    if not np.isfinite(x).all():
        raise UserError(f"{split}_position.npy holds NaN or infinity")
    return Clips(x.astype(np.float32), y)


def _read_npy(path: Path, kinds: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"file not found: {path}") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
        raise UserError(f"{path} does not hold an array of a kind of {kinds!r}")
    return array
