"""Checkpoints with orbax: atomic, verified by a digest of the values, the last good one survives.

A state is any pytree of arrays. It is stored under readable names (`params.conv1.kernel`), so a
checkpoint can be opened with orbax or tensorstore alone. The digest is stored in the same atomic
step folder, and is compared with the values that were read: a truncated or altered checkpoint is
never resumed from.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import terminal
from experiments.common.errors import UserError

KEPT = 2


class Restored(NamedTuple):
    """What the newest readable checkpoint held.

    Attributes:
      step: Training steps done.
      state: The pytree.
      extra: JSON values that were saved beside it.
    """

    step: int
    state: Any
    extra: dict[str, Any]


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "state"


def named_arrays(state: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree as host copies under readable, unique names.

    Args:
      state: Any pytree of arrays; typed random keys are stored as their words.

    Returns:
      Name to array, in the order of the tree.
    """
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = _name(path)
        # A copy, because the device's buffer is donated to the next training steps.
        arrays[name] = np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return arrays


def digest(arrays: dict[str, np.ndarray]) -> str:
    """A checksum of names, types, shapes and values.

    Args:
      arrays: Name to array.

    Returns:
      SHA-256 in hexadecimal.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.view(np.uint8).data if array.size else b"")
    return total.hexdigest()


class Checkpoints:
    """The checkpoints of one training run in one folder.

    Args:
      folder: Where; made when absent.
    """

    def __init__(self, folder: Path) -> None:
        # Orbax takes as long to import as jax does; closed-form experiments never need it.
        import orbax.checkpoint as ocp
        from absl import logging

        # Every failure is raised to us too, and is told in one line.
        logging.set_verbosity(logging.FATAL)
        _expect_orphans()
        self._ocp = ocp
        self._folder = folder.resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, create=True)
        try:
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_names=("state", "about")
            )
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from error

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Write a checkpoint in the background; the arrays are copied before this returns.

        Args:
          step: Training steps done.
          state: The pytree.
          extra: JSON values to keep beside it.

        Raises:
          UserError: The disk is full or the folder cannot be written (this one, or the one
            before that was still being written).
        """
        if step in self._manager.all_steps():
            return
        arrays = named_arrays(state)
        about = {"digest": digest(arrays), "extra": extra}
        with self._failing_clearly():
            self._manager.save(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardSave(arrays),
                    about=self._ocp.args.JsonSave(about),
                ),
            )

    def wait(self) -> None:
        """Return once everything is on disk.

        Raises:
          UserError: The write failed.
        """
        with self._failing_clearly():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Stop the background writer, whether or not its last write succeeded."""
        try:
            self._manager.close()
        except Exception as error:  # the reason was, or is being, reported by save or wait
            terminal.warn(f"checkpoint writer: {_reason(error)}")

    def restore(self, like: Any) -> Restored | None:
        """Read the newest checkpoint that is whole.

        Damaged newer ones are reported and set aside in `damaged/`; nothing is deleted.

        Args:
          like: A pytree with the structure, shapes and types of the state.

        Returns:
          The checkpoint, or None where there is none.

        Raises:
          UserError: There are checkpoints, and none is whole.
        """
        expected = {name: (a.shape, a.dtype) for name, a in _abstract(like).items()}
        damaged = []
        for step in reversed(self.steps()):
            try:
                arrays, extra = self._read(step, expected)
            except Exception as error:  # orbax, tensorstore, json and the disk each have their own
                damaged.append(step)
                terminal.warn(
                    f"checkpoint {self._folder / str(step)} is damaged ({_reason(error)})"
                )
                continue
            self._set_aside(damaged)
            if damaged:
                terminal.warn(f"resuming from the checkpoint of step {step} instead")
            return Restored(step, _rebuild(like, arrays), extra)
        if damaged:
            raise UserError(
                f"no checkpoint in {self._folder} can be read; --overwrite starts afresh"
            )
        return None

    def _read(self, step: int, expected: dict) -> tuple[dict[str, np.ndarray], dict]:
        about = self._manager.restore(
            step, args=self._ocp.args.Composite(about=self._ocp.args.JsonRestore())
        )["about"]
        target = {name: np.zeros(shape, dtype) for name, (shape, dtype) in expected.items()}
        arrays = self._manager.restore(
            step, args=self._ocp.args.Composite(state=self._ocp.args.StandardRestore(target))
        )["state"]
        arrays = {name: np.asarray(a) for name, a in arrays.items()}
        for name, (shape, dtype) in expected.items():
            if arrays[name].shape != shape or arrays[name].dtype != dtype:
                raise ValueError(f"{name} is {arrays[name].shape}, this run needs {shape}")
        if digest(arrays) != about["digest"]:
            raise ValueError("its values do not match their checksum")
        return arrays, about["extra"]

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps if jax.process_index() == 0 else []:
            target = self._folder.parent / "damaged" / f"{self._folder.name}-{step}"
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            (self._folder / str(step)).rename(target)
        if steps:
            self._manager.reload()

    def _failing_clearly(self) -> "_ClearFailure":
        return _ClearFailure(self._folder)


class _ClearFailure:
    """Turns a failed write into one line that names what is still good."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception):
            return
        good = sorted(int(p.name) for p in self._folder.glob("*") if p.name.isdigit())
        last = f"the one of step {good[-1]} is whole" if good else "there is no earlier one"
        raise UserError(
            f"cannot write a checkpoint in {self._folder} ({_reason(error)}); {last}"
        ) from error


def _expect_orphans() -> None:
    """Keep the background tasks that orbax abandons after a failure from printing.

    They report back to an event loop that ended with the failure, which Python shows as a
    traceback although the failure itself is reported by us.
    """
    previous = sys.unraisablehook

    def hook(orphan: Any) -> None:
        value = orphan.exc_value
        if not (isinstance(value, RuntimeError) and "Event loop is closed" in str(value)):
            previous(orphan)

    if getattr(previous, "__qualname__", "") != hook.__qualname__:
        sys.unraisablehook = hook


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _abstract(like: Any) -> dict[str, Any]:
    def plain(x: Any) -> Any:
        if _is_key(x):
            return jax.eval_shape(jax.random.key_data, x)
        return jax.eval_shape(lambda y: y, x)

    leaves = jax.tree_util.tree_leaves_with_path(like)
    return {_name(path): plain(leaf) for path, leaf in leaves}


def _rebuild(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)

    def value(path: Any, leaf: Any) -> Any:
        array = arrays[_name(path)]
        if not _is_key(leaf):
            return array
        return jax.random.wrap_key_data(jnp.asarray(array), impl=leaf.dtype._impl.name)

    return jax.tree.unflatten(tree, [value(path, leaf) for path, leaf in leaves])


def read_values(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the newest checkpoint by name, without knowing the state's structure.

    Args:
      folder: A checkpoint folder of `Checkpoints`.

    Returns:
      Name to array.

    Raises:
      UserError: There is no readable checkpoint.
    """
    import orbax.checkpoint as ocp

    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    if not steps:
        raise UserError(f"{folder} holds no checkpoint")
    step = folder.resolve() / str(steps[-1])
    try:
        with ocp.StandardCheckpointer() as reader:
            arrays = {k: np.asarray(v) for k, v in reader.restore(step / "state").items()}
        about = json.loads((step / "about" / "metadata").read_text())
    except Exception as error:
        raise UserError(f"{step} cannot be read ({_reason(error)})") from error
    if digest(arrays) != about["digest"]:
        raise UserError(f"{step} does not match its checksum")
    return arrays
