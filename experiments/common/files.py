"""Files that are whole or absent: every write goes to a neighbour and is then renamed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one.

    Args:
      path: Where.
      content: What.

    Raises:
      UserError: The disk is full or the folder cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically.

    Args:
      path: Where.
      value: Numbers, text, lists and dictionaries; NaN and infinities become null.
    """
    text = json.dumps(_finite(value), indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Read JSON.

    Args:
      path: Where.

    Returns:
      The value.

    Raises:
      UserError: The file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); remove it or use --overwrite"
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as .npz, atomically and without pickle.

    Args:
      path: Where.
      arrays: Name to numeric array.
    """
    import io

    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read named arrays from .npz; objects are refused.

    Args:
      path: Where.

    Returns:
      Name to array.

    Raises:
      UserError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib, numpy and the operating system each have their own
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
