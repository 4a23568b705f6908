"""The paper's identities on small networks, in float64: errors, gradients, homeostasis."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asym import equilibrium
from experiments.common import loop
from experiments.ep_homeostasis import bias, model

DRAWS = 4096


@functools.cache
def closed_forms() -> dict[str, float]:
    """Error vectors and gradients against their closed forms.

    Returns:
      `ep` and `bp`: largest |delta - exact| over activations and wirings; `gradients`: largest
      difference of the gradients of both with symmetric weights, over activations.
    """
    found: dict[str, list[float]] = {"ep": [], "bp": [], "gradients": []}
    with jax.enable_x64(True):
        for act in model.ACTIVATIONS:
            for arch in model.WIRINGS:
                network = bias.random_network(act, arch=arch)
                ep, bp = _error_deviations(network.params, network.x, network.y, act=act)
                found["ep"].append(float(ep))
                found["bp"].append(float(bp))
            tied = bias.random_network(act, angle_deg=0.0)
            difference = _gradient_difference(tied.params, tied.x, tied.y, act=act)
            found["gradients"].append(float(difference))
    return {name: max(values) for name, values in found.items()}


@functools.partial(loop.once, static_argnames="act")
def _error_deviations(
    params: model.Params, x: jax.Array, y: jax.Array, *, act: str
) -> tuple[jax.Array, jax.Array]:
    vf = model.vector_field(act)
    u = bias.rest(vf, params, x)
    told: dict[str, Any] = {"x": x, "y": y, "num_steps": bias.T_NUDGE}
    activities, slope = jax.jvp(
        lambda u: equilibrium.activate(vf, u), (u,), (jax.tree.map(jnp.ones_like, u),)
    )
    force = equilibrium.loss_gradient(vf, params, activities, y)
    bypassed = equilibrium.bypassed_field(vf, x)
    jacobian = equilibrium.activity_jacobian(bypassed, params, r_free=activities)
    weights = jacobian + jnp.eye(jacobian.shape[-1])
    parts = {"slope": _rows(slope), "gradient": _rows(force)}
    ep = equilibrium.ep_error_vector(vf, params, u, **told)
    bp = equilibrium.rbp_error_vector(vf, params, u, **told)
    return (
        jnp.abs(_rows(ep) - equilibrium.exact_ep_error_vector(weights, **parts)).max(),
        jnp.abs(_rows(bp) - equilibrium.exact_bp_error_vector(weights, **parts)).max(),
    )


@functools.partial(loop.once, static_argnames="act")
def _gradient_difference(
    params: model.Params, x: jax.Array, y: jax.Array, *, act: str
) -> jax.Array:
    vf = model.vector_field(act)
    u = bias.rest(vf, params, x)
    told: dict[str, Any] = {"x": x, "y": y, "num_steps": bias.T_NUDGE}
    delta = equilibrium.ep_error_vector(vf, params, u, **told)
    ep = equilibrium.ep_grad(vf, params, u_free=u, delta=delta, x=x, y=y)
    bp = equilibrium.bp_grad(vf, params, u, **told)
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), ep, bp)
    return jnp.max(jnp.stack(jax.tree.leaves(differences)))


@functools.cache
def unbiasedness() -> dict[str, float]:
    """The random estimate of the homeostatic loss against the dense Jacobian's.

    Returns:
      `loss` and `gradient`: distance of the mean over the draws from the exact value, in standard
      errors (of the gradient along the exact one); `spread`: standard deviation of one draw over
      the exact loss.
    """
    with jax.enable_x64(True):
        network = bias.random_network("sigmoid")
        losses, along, loss, length = map(np.asarray, _homeostasis(network.params, network.x))

    def distance(values: np.ndarray, exact: np.ndarray) -> float:
        return float(abs(values.mean() - exact) / (values.std(ddof=1) / np.sqrt(len(values))))

    return {
        "loss": distance(losses, loss),
        "gradient": distance(along, length),
        "spread": float(losses.std(ddof=1) / loss),
    }


@loop.once
def _homeostasis(params: model.Params, x: jax.Array) -> tuple[jax.Array, ...]:
    vf = model.vector_field("sigmoid")
    activities = equilibrium.activate(vf, bias.rest(vf, params, x))
    bypassed = equilibrium.bypassed_field(vf, x)

    def exact(params: model.Params) -> jax.Array:
        """||W - W^T||^2 / 2n of the weights themselves, which in this network are dH/dr."""
        units = {layer: r.shape[1] for layer, r in activities.items()}
        rows = []
        for after in units:
            row = [
                params[f"{before}-{after}"]["kernel"].T
                if f"{before}-{after}" in params
                else jnp.zeros((units[after], units[before]))
                for before in units
            ]
            rows.append(jnp.concatenate(row, axis=1))
        weights = jnp.concatenate(rows)
        return jnp.sum((weights - weights.T) ** 2) / (2 * len(weights))

    loss, direction = jax.value_and_grad(exact)(params)
    eps = equilibrium.gaussian_probes(jax.random.key(1), activities, DRAWS)

    def draw(e: model.States) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(
            lambda p: equilibrium.homeostatic_loss(bypassed, p, r_free=activities, eps=e)
        )(params)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)
        return value, jax.tree.reduce(jnp.add, products)

    losses, along = jax.vmap(draw)(eps)
    length = jax.tree.reduce(jnp.add, jax.tree.map(lambda d: jnp.sum(d**2), direction))
    return losses, along, loss, length


def _rows(states: model.States) -> jax.Array:
    return jnp.concatenate(jax.tree.leaves(states), axis=1)
