"""Data parallelism: each batch is shared among all devices of all processes, state is on each."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.common.errors import UserError

AXIS = "data"


def join(*, coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the other processes of this run; must come before the first use of a device.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: How many processes train together.
      process_id: Which of them this is.

    Raises:
      UserError: The settings contradict each other, or the others cannot be reached.
    """
    if num_processes == 1:
        return
    if not coordinator or ":" not in coordinator:
        raise UserError("--num_processes > 1 needs --coordinator=host:port of process 0")
    if process_id >= num_processes:
        raise UserError(f"--process_id={process_id}: must be below --num_processes={num_processes}")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the run at {coordinator}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def make(num_devices: int = 0) -> Mesh:
    """A one-dimensional mesh.

    Args:
      num_devices: How many devices; 0 takes all.

    Returns:
      A mesh whose only axis shares the batch.

    Raises:
      UserError: More devices are asked for than there are.
    """
    devices = jax.devices()
    if num_devices > len(devices):
        raise UserError(f"--num_devices={num_devices}: this run has {len(devices)}")
    if num_devices and jax.process_count() > 1 and num_devices != len(devices):
        raise UserError("--num_devices cannot leave out devices when several processes train")
    return Mesh(np.array(devices[: num_devices or len(devices)]), (AXIS,))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a copy of every array on every device.

    Args:
      mesh: The devices.
      tree: Arrays; in a run of several processes, the same values in each.

    Returns:
      The same tree on the mesh.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    if mesh.size == 1:
        return jax.device_put(tree, mesh.devices.item())

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jax.device_put(np.asarray(jax.random.key_data(x)), everywhere)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jax.device_put(np.asarray(x), everywhere)

    return jax.tree.map(put, tree)


def share_batch(mesh: Mesh, batch: Any) -> Any:
    """Inside jit: ask for the leading axis of every array to be split over the devices.

    Args:
      mesh: The devices.
      batch: Arrays whose leading axis is the batch.

    Returns:
      The same arrays, constrained. Reductions over the batch (losses, batch statistics) keep
      their meaning: the compiler adds the communication.

    Raises:
      UserError: The batch does not divide evenly.
    """
    if mesh.size == 1:
        return batch
    shared = NamedSharding(mesh, PartitionSpec(AXIS))

    def constrain(x: jax.Array) -> jax.Array:
        if x.ndim == 0:
            return x
        if x.shape[0] % mesh.size:
            raise UserError(
                f"a batch of {x.shape[0]} does not divide among {mesh.size} devices; "
                f"choose another batch or --num_devices"
            )
        return jax.lax.with_sharding_constraint(x, shared)

    return jax.tree.map(constrain, batch)
