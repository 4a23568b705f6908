"""What can be told without training: exact identities, and the first push on each hidden unit."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import activations, similarity
from experiments.task_geometry.settings import ACTIVATIONS

_BITS = (2, 3, 4, 5)
_DRAWS = 20


class Identities(NamedTuple):
    """Largest deviations, in float64.

    Attributes:
      alignment: |CKA(K_x, K_y) - c| of the closed form, over all tasks of the authors' grid.
      drawn: The same of random spectra and random kernels.
      gradient: The gradient by hand against autodiff of (outputs) x mean cross-entropy, relative.
      rotation: Change of CKA under rotation and isotropic scaling.
      cube: |parallelism - 1| of factorised cubes, by both pairings.
    """

    alignment: float
    drawn: float
    gradient: float
    rotation: float
    cube: float


@functools.cache
def identities() -> Identities:
    """Measures the identities.

    Returns:
      The deviations.
    """
    with jax.enable_x64(True):
        return Identities(
            *(float(f()) for f in (_closed_form, _random_tasks, _gradients, _invariance, _cubes))
        )


def _aligned(inputs: jax.Array, targets: jax.Array) -> jax.Array:
    return similarity.cka(inputs @ inputs.T, targets @ targets.T)


@jax.jit
def _closed_form() -> jax.Array:
    basis = jnp.linalg.qr(jax.random.uniform(jax.random.key(0), (100, 100)))[0]

    def deviation(bits: int, k: int, c: jax.Array) -> jax.Array:
        task = similarity.aligned_inputs(bits, k, c)
        inputs = 10 * task.inputs @ basis[: task.inputs.shape[1]]
        return jnp.abs(_aligned(inputs, task.targets.astype(inputs.dtype)) - c)

    worst = []
    for bits in _BITS:
        for k in (1, bits):
            grid = similarity.largest_alignment(2**bits - 1, k) * jnp.linspace(0, 1, 12)
            worst.append(jax.vmap(functools.partial(deviation, bits, k))(grid))
    return jnp.max(jnp.stack(worst))


@jax.jit
def _random_tasks() -> jax.Array:
    targets = similarity.hadamard_dichotomies(3)[:, :2].astype(float)

    def one(key: jax.Array, c: jax.Array) -> jax.Array:
        spectrum = similarity.random_aligned_spectrum(key, 7, 2, c, scale=0.5)
        task = similarity.aligned_inputs(3, 2, spectrum=spectrum)
        kernel = similarity.random_aligned_kernel(key, targets, c, max_rank=5)
        found = _aligned(task.inputs, targets), similarity.cka(kernel, targets @ targets.T)
        return jnp.abs(jnp.stack(found) - c)

    keys = jax.random.split(jax.random.key(0), _DRAWS)
    return jnp.max(jax.vmap(one)(keys, jnp.linspace(0, 0.9, _DRAWS)))


@jax.jit
def _gradients() -> jax.Array:
    keys = jax.random.split(jax.random.key(0), 4)
    x, weights, readout = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, ((64, 20), (20, 32), (32, 3)), strict=False)
    )
    y = jax.random.bernoulli(keys[3], shape=(64, 3)).astype(x.dtype)
    # Some points lie exactly on kinks.
    x = x.at[:4].set(0.0)
    worst = []
    for activation in ACTIVATIONS.values():

        def loss(w: jax.Array, phi: activations.Function) -> jax.Array:
            logits = phi(x @ w) @ readout
            return y.shape[1] * jnp.mean(jnp.logaddexp(0, logits) - y * logits)

        inside = x @ weights
        by_hand = activations.hidden_gradient(
            inputs=x,
            slope=activation.derivative(inside),
            error=y - jax.nn.sigmoid(activation.value(inside) @ readout),
            readout=readout,
        ).weights
        expected = jax.grad(loss)(weights, activation.differentiable())
        worst.append(jnp.max(jnp.abs(by_hand - expected)) / jnp.max(jnp.abs(expected)))
    return jnp.max(jnp.stack(worst))


@jax.jit
def _invariance() -> jax.Array:
    rng = np.random.default_rng(1)
    points, other = jnp.asarray(rng.normal(size=(16, 30))), jnp.asarray(rng.normal(size=(16, 4)))
    rotation = jnp.linalg.qr(jnp.asarray(rng.normal(size=(30, 30))))[0]
    return jnp.abs(_aligned(7.3 * points @ rotation, other) - _aligned(points, other))


@jax.jit
def _cubes() -> jax.Array:
    worst = []
    for bits in (2, 3):
        words = (jnp.arange(2**bits)[:, None] >> jnp.arange(bits)) & 1
        # Along the shortest axis the nearest partner is the parallel one.
        points = words * jnp.arange(1.0, bits + 1)
        for pairing in ("assignment", "exhaustive"):
            score = similarity.parallelism_score(points @ points.T, words[:, 0], pairing=pairing)
            worst.append(jnp.abs(score - 1))
    return jnp.max(jnp.stack(worst))


class Flow(NamedTuple):
    """The expected first push on hidden units of a task with two classes of two conditions.

    Attributes:
      weights: Units, by what they see along the axis inside a class and between the classes (N, 2).
      push: Minus the gradient in the same plane (N, 2).
      conditions: Means of the conditions in the plane (4, 2).
      labels: 0 or 1 (4,).
    """

    weights: np.ndarray
    push: np.ndarray
    conditions: np.ndarray
    labels: np.ndarray


def first_push(name: str, sign: float = 1.0, side: int = 9) -> Flow:
    """Where a unit with a positive readout is pushed before anything is learnt.

    ``sum over conditions of J err_c phi'(w.x_c) x_c`` with ``err_c = y_c - 1/2``: points on which
    the unit is flat push nothing.

    Args:
      name: The nonlinearity.
      sign: The unit's readout.
      side: Units along each axis.

    Returns:
      The flow.
    """
    conditions = jnp.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    labels = jnp.array([0.0, 0.0, 1.0, 1.0])
    line = jnp.linspace(-1.5, 1.5, side)
    weights = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2)
    gradient = activations.hidden_gradient(
        inputs=conditions,
        slope=ACTIVATIONS[name].derivative(conditions @ weights.T),
        error=labels[:, None] - 0.5,
        readout=jnp.full((len(weights), 1), sign),
    )
    return Flow(*map(np.asarray, (weights, -gradient.weights.T, conditions, labels)))
