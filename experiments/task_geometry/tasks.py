"""The tasks of a run, and the samples that one step trains on.

All tasks of a run are cells of one array: means of the conditions, padded to the largest number of
conditions and of outputs. A sample is a row of noise (or a picture) that is common to all cells,
and a place in [0, 1) that tells its condition: of P conditions it is number floor(place P).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import similarity
from experiments.common import loop, seeds
from experiments.common.errors import UserError
from experiments.task_geometry import pictures


class Cell(NamedTuple):
    """What is known of a task before it is drawn.

    Attributes:
      problem: Name of the task without its separability.
      separability: Its dial in [0, 1]; 1 where it has none.
      num_conditions: P.
      num_targets: k.
    """

    problem: str
    separability: float
    num_conditions: int
    num_targets: int


class Tasks(NamedTuple):
    """Drawn tasks of one seed, C cells.

    Attributes:
      means: Of the conditions (C, P, D).
      targets: 0 or 1 (C, P, K).
      outputs: 1 where an output is used (C, K).
      counts: Conditions (C,).
      probes: Inputs without noise, whose representations are compared (C, Q, D).
    """

    means: jax.Array
    targets: jax.Array
    outputs: jax.Array
    counts: jax.Array
    probes: jax.Array


class Examples(NamedTuple):
    """Training samples.

    Attributes:
      inputs: What is added to the mean (n, D).
      place: In [0, 1), which tells the condition (n,).
      orders: A permutation for each epoch (T, n); drawing one costs more than a step of few
        networks.
    """

    inputs: jax.Array
    place: jax.Array
    orders: jax.Array


class Batch(NamedTuple):
    """What one step trains on.

    Attributes:
      inputs: What is added to the mean (B, D).
      place: Which tells the condition (B,).
      weight: 1 over the number of samples; 0 for those that fill up an epoch's last batch (B,).
      epoch: From 0.
      last: Whether this is the last batch of the epoch.
    """

    inputs: jax.Array
    place: jax.Array
    weight: jax.Array
    epoch: jax.Array
    last: jax.Array


class Source(NamedTuple):
    """Everything that a run learns from and is measured on.

    Attributes:
      cells: One for each task.
      tasks: With a leading axis of seeds.
      batches: For `loop.fit`.
      steps_per_epoch: Batches in a pass, the last one smaller.
      average: Means over probes (P, Q), which make representations of conditions.
      test: What is added to the mean of condition i // test_samples (S, P x test_samples, D).
      side: Of the pictures, and their channels; None without pictures.
    """

    cells: tuple[Cell, ...]
    tasks: Tasks
    batches: loop.Resident
    steps_per_epoch: int
    average: np.ndarray
    test: jax.Array
    side: tuple[int, int] | None

    @property
    def dim(self) -> int:
        """D."""
        return self.tasks.means.shape[-1]


def conditions(place: jax.Array, counts: jax.Array) -> jax.Array:
    """The condition of each sample in each cell.

    Args:
      place: In [0, 1) (n,).
      counts: Conditions of each cell (C,).

    Returns:
      Numbers from 0 (C, n).
    """
    return jnp.minimum(jnp.int32(place * counts[:, None]), counts[:, None] - 1)


def open_source(config: Any) -> Source:
    """The tasks and data of a run.

    Args:
      config: The experiment's settings.

    Returns:
      The source.

    Raises:
      UserError: Settings that no task has, or a missing or damaged file.
    """
    # Apart from the keys that the loop derives from the same seed.
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**31 - 1))(
        seeds.keys(config.seed, config.num_seeds)
    )
    if config.task in ("digits", "cifar10"):
        return _pictures(config, keys)
    cells = list_cells(config)
    dim = config.dim or {"xor": 120, "patterns": 200}.get(config.task, 100)
    largest = max(cell.num_conditions for cell in cells)
    if config.task in ("orthogonal", "kernel") and dim < largest:
        raise UserError(f"--dim={dim}: {largest} conditions need at least as many dimensions")
    if config.task == "xor" and dim % 3:
        raise UserError(f"--dim={dim}: the three axes of xor need a multiple of 3")
    own = 0.2 if config.task == "xor" else None
    noise = config.input_noise if config.input_noise >= 0 else own or 1.0
    test_noise = config.test_noise if config.test_noise >= 0 else own or 0.5
    num_train = config.num_train or 5000

    def draw(key: jax.Array) -> tuple[Tasks, Examples, jax.Array]:
        task_key, place_key, noise_key, test_key, order_key = jax.random.split(key, 5)
        tasks = draw_tasks(task_key, config, cells, dim)
        place = jax.random.uniform(place_key, (num_train,))
        inputs = noise * jax.random.normal(noise_key, (num_train, dim))
        test = jax.random.normal(test_key, (largest * config.test_samples, dim))
        orders = _orders(order_key, config.epochs, num_train)
        return tasks, Examples(inputs, place, orders), test_noise * test

    tasks, examples, test = loop.once(jax.vmap(draw))(keys)
    steps = -(-num_train // config.batch_size)
    return Source(
        cells=cells,
        tasks=tasks,
        batches=loop.Resident(examples, _sampler(config, num_train, steps), per_seed=True),
        steps_per_epoch=steps,
        average=np.eye(largest, dtype=np.float32),
        test=test,
        side=None,
    )


def list_cells(config: Any) -> tuple[Cell, ...]:
    """The tasks that settings ask for.

    Args:
      config: The experiment's settings.

    Returns:
      The cells; those of a problem follow each other, in rising separability.

    Raises:
      UserError: More outputs than dichotomies, or an alignment that they cannot have.
    """
    if config.task == "patterns":
        return (Cell("4 patterns", 1.0, 4, 1),)
    if config.task == "xor":
        dials = sorted(config.separability) or [0.0, 0.25, 0.5, 0.75, 1.0]
        return tuple(Cell("xor", dial, 4, 1) for dial in dials)
    found = []
    dials = sorted(config.separability) or [0.0, 0.5, 1.0]
    problems = [(2, 1), (3, 1), (3, 3)]
    if config.num_bits or config.num_targets:
        asked = [
            (bits, k or bits)
            for bits in config.num_bits or (2, 3)
            for k in config.num_targets or (1, 0)
        ]
        problems = list(dict.fromkeys(asked))
    for bits, k in problems:
        most = 2**bits - 1
        if k > most:
            raise UserError(f"--num_targets={k}: {bits} bits have {most} dichotomies")
        if k == most and (dials != [1.0] or config.task == "kernel" or config.scale):
            raise UserError(
                f"--num_targets={k}: all dichotomies of {bits} bits have one alignment, "
                f"--separability=1 of --task=orthogonal"
            )
        found += [Cell(f"b={bits} k={k}", dial, 2**bits, k) for dial in dials]
    return tuple(found)


def draw_tasks(key: jax.Array, config: Any, cells: tuple[Cell, ...], dim: int) -> Tasks:
    """The tasks of one seed.

    Args:
      key: Its key; all cells are drawn from it, so that they differ in nothing else.
      config: The experiment's settings.
      cells: What to draw.
      dim: D.

    Returns:
      The tasks.
    """
    basis_key, key = jax.random.split(key)
    rotation = jnp.linalg.qr(jax.random.uniform(basis_key, (dim, dim)))[0]
    drawn = []
    for cell in cells:
        k = cell.num_targets
        if config.task == "patterns":
            means = jax.random.normal(key, (4, dim))
            targets = jnp.array([[0.0], [0.0], [1.0], [1.0]])
        elif config.task == "xor":
            means = similarity.nudged_xor(cell.separability, _xor_basis(key, dim))
            targets = jnp.array([[0.0], [1.0], [1.0], [0.0]])
        else:
            inputs, targets = _built(key, config, cell)
            means = inputs @ rotation[: inputs.shape[1]] * jnp.sqrt(dim)
        drawn.append((means, targets, jnp.ones(k)))
    largest = max(cell.num_conditions for cell in cells)
    outputs = max(cell.num_targets for cell in cells)

    def padded(x: jax.Array, *shape: int) -> jax.Array:
        return jnp.pad(x, [(0, size - have) for size, have in zip(shape, x.shape, strict=True)])

    means = jnp.stack([padded(m, largest, dim) for m, _, _ in drawn])
    return Tasks(
        means=means,
        targets=jnp.stack([padded(y, largest, outputs) for _, y, _ in drawn]),
        outputs=jnp.stack([padded(o, outputs) for _, _, o in drawn]),
        counts=jnp.array([cell.num_conditions for cell in cells]),
        probes=means,
    )


def _built(key: jax.Array, config: Any, cell: Cell) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets whose alignment is prescribed."""
    n, k = cell.num_conditions - 1, cell.num_targets
    c = cell.separability * similarity.largest_alignment(n, k)
    if config.task == "orthogonal":
        spectrum = None
        if config.scale:
            spectrum = similarity.random_aligned_spectrum(key, n, k, c, scale=config.scale)
        task = similarity.aligned_inputs(n.bit_length(), k, c, spectrum=spectrum)
        return task.inputs, task.targets.astype(task.inputs.dtype)
    targets = similarity.hadamard_dichotomies(n.bit_length())[:, :k].astype(jnp.float32)
    rank = min(config.max_rank or n, n)
    kernel = similarity.random_aligned_kernel(key, targets, c, max_rank=rank)
    values, vectors = jnp.linalg.eigh(kernel)
    return vectors * jnp.sqrt(jnp.maximum(values, 0)), targets


def _xor_basis(key: jax.Array, dim: int) -> jax.Array:
    """Three axes on blocks of their own, with entries of one sign."""
    blocks = jnp.abs(jax.random.normal(key, (3, dim // 3)))
    blocks = blocks / jnp.linalg.norm(blocks, axis=1, keepdims=True) * jnp.sqrt(dim / 3)
    return jax.scipy.linalg.block_diag(*[block[:, None] for block in blocks])


def _pictures(config: Any, keys: jax.Array) -> Source:
    """Two labels of ten classes of pictures: odd or even, and below 5 or not."""
    train, test = pictures.read(config.task, config.data_dir, config.num_train)
    side, channels = train.images.shape[2:]
    centre = train.images.mean(axis=0).ravel()
    count = len(train.labels)
    flat = train.images.reshape(count, -1) - centre
    if config.input_noise > 0:
        flat += config.input_noise * np.random.default_rng(config.seed).normal(size=flat.shape)
    probes, shown = pictures.by_class(test, centre, config.test_samples)
    if config.test_noise > 0:
        shown = shown + config.test_noise * np.random.default_rng(1).normal(size=shown.shape)
    classes = np.arange(10)
    targets = np.stack([classes % 2, classes >= 5], axis=1).astype(np.float32)
    tasks = Tasks(
        means=jnp.zeros((1, 10, flat.shape[1])),
        targets=jnp.asarray(targets[None]),
        outputs=jnp.ones((1, 2)),
        counts=jnp.array([10]),
        probes=jnp.asarray(probes[None]),
    )
    many = len(keys)
    per_class = probes.shape[0] // 10
    steps = -(-count // config.batch_size)
    place = (train.labels + np.float32(0.5)) / 10
    orders = loop.once(lambda key: _orders(key, config.epochs, count))(keys[0])
    examples = Examples(jnp.asarray(flat, jnp.float32), jnp.asarray(place), orders)
    return Source(
        cells=(Cell(config.task, 1.0, 10, 2),),
        tasks=jax.tree.map(lambda x: jnp.broadcast_to(x, (many, *x.shape)), tasks),
        batches=loop.Resident(examples, _sampler(config, count, steps)),
        steps_per_epoch=steps,
        average=np.repeat(np.eye(10, dtype=np.float32), per_class, axis=1) / per_class,
        test=jnp.broadcast_to(np.float32(shown), (many, *shown.shape)),
        side=(side, channels),
    )


def _orders(key: jax.Array, epochs: int, count: int) -> jax.Array:
    keys = jax.random.split(key, epochs)
    return jax.lax.map(lambda key: jax.random.permutation(key, count), keys)


def _sampler(config: Any, count: int, steps_per_epoch: int) -> Any:
    size = config.batch_size

    def sample(examples: Examples, key: jax.Array, step: jax.Array) -> Batch:
        """A new permutation each epoch; its last batch may be smaller."""
        del key
        epoch, number = step // steps_per_epoch, step % steps_per_epoch
        places = number * size + jnp.arange(size)
        there = places < count
        chosen = examples.orders[epoch, jnp.where(there, places, 0)]
        return Batch(
            inputs=examples.inputs[chosen],
            place=examples.place[chosen],
            weight=there / jnp.sum(there),
            epoch=epoch,
            last=number == steps_per_epoch - 1,
        )

    return sample
