"""The bias of finitely many nudges of finite size, without any training, in float64."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asym import equilibrium
from experiments.common import loop, report
from experiments.ep_homeostasis import model

SIZES = (7, 6, 5, 3)
PHASES = (1, 2, 4, 6, 8)
BETAS = (0.05, 0.1, 0.2, 0.35, 0.5)
# Until everything is at rest: only the estimates of the derivative are compared.
T_FREE, T_NUDGE = 400, 150
RECORDED = report.REPOSITORY / "tests" / "golden" / "vectors" / "ep_homeostasis.npz"
_SAMPLES = 4
# With fewer phases the defect is large and harmless.
_FEWEST_JUDGED = 3


class Network(NamedTuple):
    """A small network with its data: activation, parameters, inputs and targets."""

    act: str
    params: model.Params
    x: jax.Array
    y: jax.Array


class Biases(NamedTuple):
    """Deviation of the gradient from that of the exact derivative.

    Attributes:
      relative: ||g_N - g_0|| / ||g_0||, shape (phases, betas).
      log_residual: Largest over circle and samples, shape (phases, betas); NaN for few phases.
      defect: Largest over samples, shape (phases, betas); NaN for few phases.
    """

    relative: np.ndarray
    log_residual: np.ndarray
    defect: np.ndarray


def random_network(act: str, *, arch: str = "recip", angle_deg: float = 90.0) -> Network:
    """A network with random weights and data; needs float64 mode.

    Args:
      act: Its activation.
      arch: Its wiring.
      angle_deg: Angle of feedback to forward weights.

    Returns:
      The network, sizes 7-6-5-3, four samples.
    """
    params_key, x_key, y_key = jax.random.split(jax.random.key(0), 3)
    params = model.init_mlp(params_key, SIZES, arch=arch, angle_deg=angle_deg)
    params = jax.tree.map(lambda w: w.astype(float), params)
    x = jax.random.normal(x_key, (_SAMPLES, SIZES[0]))
    y = jax.nn.one_hot(jax.random.randint(y_key, (_SAMPLES,), 0, SIZES[-1]), SIZES[-1])
    return Network(act, params, x, y)


def recorded_network(act: str) -> Network | None:
    """The network of the recorded reference values; needs float64 mode.

    Args:
      act: Its activation.

    Returns:
      The network; None outside a checkout, where the recording is absent.
    """
    if not RECORDED.exists():
        return None
    with np.load(RECORDED, allow_pickle=False) as archive:
        prefix = f"gradients/recip_{act}/in/"
        arrays = {k.removeprefix(prefix): archive[k] for k in archive.files if k.startswith(prefix)}
    params: model.Params = {}
    for name, array in arrays.items():
        first, *path = name.split("/")
        if first != "params":
            continue
        branch = params
        for folder in path[:-1]:
            branch = branch.setdefault(folder, {})
        branch[path[-1]] = jnp.asarray(array)
    return Network(act, params, jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"]))


def rest(vf: equilibrium.VectorField, params: model.Params, x: jax.Array) -> model.States:
    """The fixed point of the free phase.

    Args:
      vf: The network.
      params: Its parameters.
      x: Inputs.

    Returns:
      The states.
    """

    def step(u: model.States) -> model.States:
        return equilibrium.next_states(vf, params, u, x=x)

    return equilibrium.relax(step, model.zero_states(params, x), T_FREE)


@functools.partial(loop.once, static_argnames="act")
def _rest(params: model.Params, x: jax.Array, *, act: str) -> model.States:
    return rest(model.vector_field(act), params, x)


@functools.partial(loop.once, static_argnames=("act", "n"))
def _errors(
    params: model.Params,
    u: model.States,
    x: jax.Array,
    y: jax.Array,
    betas: jax.Array,
    *,
    act: str,
    n: int,
) -> tuple[model.States, jax.Array, jax.Array]:
    """Error vector, residual and defect at each radius."""
    vf = model.vector_field(act)

    def one(beta: jax.Array) -> tuple[model.States, jax.Array, jax.Array]:
        told: dict[str, Any] = {"x": x, "y": y, "num_steps": T_NUDGE, "beta": beta, "n": n}
        delta = equilibrium.ep_error_vector(vf, params, u, **told)
        if n < _FEWEST_JUDGED:
            return delta, jnp.full((), jnp.nan), jnp.full((), jnp.nan)
        circle = equilibrium.diagnose_circle(vf, params, u, **told)
        return delta, jnp.max(circle.log_residual), jnp.max(circle.defect)

    return jax.vmap(one)(betas)


@functools.partial(loop.once, static_argnames="act")
def _gradients(
    params: model.Params,
    u: model.States,
    x: jax.Array,
    y: jax.Array,
    deltas: model.States,
    *,
    act: str,
) -> jax.Array:
    """Gradients in rows, from error vectors with a leading axis."""
    vf = model.vector_field(act)

    def one(delta: model.States) -> jax.Array:
        gradient = equilibrium.ep_grad(vf, params, u_free=u, delta=delta, x=x, y=y)
        return jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient)])

    return jax.vmap(one)(deltas)


def biases(
    network: Network, phases: tuple[int, ...] = PHASES, betas: tuple[float, ...] = BETAS
) -> Biases:
    """Bias of every number of phases at every radius; in float64 mode.

    Args:
      network: The network.
      phases: Numbers of phases N.
      betas: Radii.

    Returns:
      The biases.
    """
    act, params, x, y = network
    u = _rest(params, x, act=act)
    errors = functools.partial(_errors, params, u, x, y, act=act)
    exact = errors(jnp.asarray(betas[:1]), n=0)[0]
    found = [errors(jnp.asarray(betas), n=n) for n in phases]
    # All at once: one program for the learning rule instead of one for each number of phases.
    deltas = jax.tree.map(lambda *parts: jnp.concatenate(parts), exact, *(f[0] for f in found))
    first, *rows = np.asarray(_gradients(params, u, x, y, deltas, act=act))
    deviation = np.stack(rows).reshape(len(phases), len(betas), -1) - first
    relative = np.linalg.norm(deviation, axis=2) / np.linalg.norm(first)
    return Biases(relative, *(np.stack([np.asarray(f[i]) for f in found]) for i in (1, 2)))


@functools.cache
def table(act: str) -> Biases:
    """The biases of the random network, measured once a process.

    Args:
      act: The activation.

    Returns:
      The biases.
    """
    with jax.enable_x64(True):
        return biases(random_network(act))


def slopes(found: Biases, betas: tuple[float, ...] = BETAS) -> np.ndarray:
    """Exponents k of bias ~ beta^k, fitted to all radii.

    Args:
      found: The biases.
      betas: Their radii.

    Returns:
      One exponent for each number of phases.
    """
    return np.polyfit(np.log(betas), np.log(found.relative).T, 1)[0]
