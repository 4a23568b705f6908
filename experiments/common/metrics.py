"""Numbers of a run over its steps: metrics.jsonl for programs, TensorBoard events for people."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.errors import UserError


class MetricsWriter:
    """Writes one line a call; a resumed run continues where its checkpoint ends.

    Lines of steps after the checkpoint are dropped at resumption, because the resumed run writes
    them again: the file of an interrupted run equals that of an uninterrupted one.

    Args:
      folder: Where `metrics.jsonl` and `tensorboard/` live.
      first_step: Steps done by the checkpoint that the run resumes.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._lines = None
        if jax.process_index() != 0:
            return
        # Its import is slow and only training runs need it.
        from tensorboardX import SummaryWriter

        path = folder / "metrics.jsonl"
        kept = [row for row in read(path) if row["step"] <= first_step] if path.exists() else []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self._lines = path.open("a")
            self._events = SummaryWriter(
                str(folder / "tensorboard"), purge_step=first_step + 1 if kept else None
            )
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from error

    def write(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Add one line.

        Args:
          step: Training steps done.
          values: Name to one value a seed.

        Raises:
          UserError: The disk is full.
        """
        if self._lines is None:
            return
        row: dict[str, Any] = {"step": step}
        row |= {name: [float(v) for v in np.atleast_1d(v)] for name, v in values.items()}
        try:
            self._lines.write(json.dumps(row) + "\n")
            self._lines.flush()
            for name, v in values.items():
                self._events.add_scalar(name, float(np.mean(v)), step)
        except OSError as error:
            raise UserError(f"cannot write {self._lines.name}: {error.strerror}") from error

    def close(self) -> None:
        """Flush and close."""
        if self._lines is not None:
            # On a full disk the line that did not fit was reported when it was written.
            with contextlib.suppress(OSError):
                self._lines.close()
                self._events.close()


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl; a half-written last line is left out.

    Args:
      path: The file.

    Returns:
      One dictionary a line: `step` and one list of per-seed values a metric.
    """
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def curve(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One metric over the steps, for a figure.

    Args:
      path: A metrics.jsonl.
      name: The metric.

    Returns:
      Steps (points,) and values (points, num_seeds).
    """
    rows = [row for row in read(path) if name in row]
    return np.array([row["step"] for row in rows]), np.array([row[name] for row in rows])
