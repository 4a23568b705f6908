"""Adapters for equilibrium propagation with Jacobian homeostasis (arXiv 2309.02214).

The estimators are compiled as functions of the arrays, with activation and numbers of steps as
constants: cases of equal shapes share a program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from asym import equilibrium
from experiments.ep_homeostasis import model

# Each program runs once: most of the time goes into making it, and less so without optimisation.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def _nested(arrays):
    """Arrays by "a/b/c" as dicts of dicts."""
    tree = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[last] = jnp.asarray(array) if array.dtype.kind in "fc" else array
    return tree


def _flat(tree, prefix):
    """The reverse of `_nested`, with names that begin with a prefix."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found = {}
    for name, branch in tree.items():
        found |= _flat(branch, f"{prefix}/{name}")
    return found


def _outputs(**trees):
    found = {}
    for name, tree in trees.items():
        found |= _flat(tree, name)
    return found


def _activation(act):
    @jax.jit
    def value_and_derivative(x):
        # The derivative of a holomorphic function is the tangent along the real axis.
        return jax.jvp(act, (x,), (jnp.ones_like(x),))

    def adapter(inputs):
        y, dy = value_and_derivative(jnp.asarray(inputs["x"]))
        return {"y": y, "dy": dy}

    return adapter


@jax.jit
def _pool(v, temperature, cotangent):
    y, pull_back = jax.vjp(lambda v: equilibrium.softmax_pool(v, temperature=temperature), v)
    return y, pull_back(jnp.ones_like(y) if cotangent is None else cotangent)[0]


def sfm_pool(inputs):
    y, vjp = _pool(jnp.asarray(inputs["v"]), inputs["T"], inputs.get("cotangent"))
    return {"y": y, "vjp": vjp}


@jax.jit
def _rotate(params, angle_deg):
    rotated = model.rotate(params, angle_deg)
    pairs = model.reciprocal_pairs(params)
    before, after = (equilibrium.feedback_angle(p, pairs) for p in (params, rotated))
    return rotated, before, after


def rotate(inputs):
    params, before, after = _rotate(_nested(inputs)["params"], inputs["alpha_deg"])
    return _outputs(params=params, angle_deg=after, angle_before_deg=before)


@functools.partial(_jit, static_argnames="act")
def _vfield(params, u, x, y, beta, cbeta, act):
    vf = model.vector_field(act)
    activities = equilibrium.activate(vf, u)
    turned = jax.tree.map(lambda z: z.astype(cbeta.dtype), u)
    return {
        "vf": equilibrium.vector_field(vf, params, u, x=x, y=y, beta=beta),
        "vf_complex": equilibrium.vector_field(vf, params, turned, x=x, y=y, beta=cbeta),
        "logits": model.logits(params, activities),
        "act": activities,
    }


def vfield(inputs):
    case = _nested(inputs)
    act = case.pop("act").item()
    return _outputs(**_vfield(**case, act=act))


def _free_states(vf, params, x, num_steps):
    zeros = model.zero_states(params, x)
    return equilibrium.relax(
        lambda u: equilibrium.next_states(vf, params, u, x=x), zeros, num_steps
    )


@functools.partial(_jit, static_argnames="act")
def _free_phase(params, x, num_steps, act):
    vf = model.vector_field(act)
    u = _free_states(vf, params, x, num_steps)
    return {
        "u": u,
        "log10_residual": equilibrium.log_residual(equilibrium.vector_field(vf, params, u, x=x)),
        "logits": model.logits(params, equilibrium.activate(vf, u)),
    }


def free_phase(inputs):
    case = _nested(inputs)
    return _outputs(**_free_phase(case["params"], case["x"], case["T"], inputs["act"].item()))


@functools.partial(_jit, static_argnames=("num_steps", "phases", "act"))
def _gradients(params, u_free, x, y, betas, num_steps, phases, act):
    """Error vectors and gradients by estimator, those of the sweep with an axis of betas."""
    vf = model.vector_field(act)
    data = {"x": x, "y": y, "num_steps": num_steps}

    def estimate(beta, n):
        return equilibrium.ep_error_vector(vf, params, u_free, **data, beta=beta, n=n)

    single = {
        "rbp": equilibrium.rbp_error_vector(vf, params, u_free, **data),
        "neumann": equilibrium.neumann_rbp_error_vector(vf, params, u_free, **data),
        "readout": jax.tree.map(jnp.zeros_like, u_free),
        "N0": estimate(0.0, 0),
    }
    swept = {n: jax.vmap(functools.partial(estimate, n=n))(betas) for n in phases}

    # All at once: one program for the learning rule instead of one for each estimator.
    parts = [*(jax.tree.map(lambda z: z[None], delta) for delta in single.values())]
    joined = jax.tree.map(lambda *z: jnp.concatenate(z), *parts, *swept.values())
    learn = functools.partial(equilibrium.ep_grad, vf, params, u_free=u_free, x=x, y=y)
    learned = jax.vmap(lambda delta: learn(delta=delta))(joined)
    return single, swept, learned, equilibrium.bp_grad(vf, params, u_free, **data)


def gradients(inputs):
    case = _nested(inputs)
    single, swept, learned, bp = _gradients(
        *(case[name] for name in ("params", "u_free", "x", "y", "betas")),
        num_steps=inputs["T2"].item(),
        phases=tuple(inputs["n_phases"].tolist()),
        act=inputs["act"].item(),
    )
    found = {"bp": bp, "delta_rbp": single["rbp"], "du_dbeta_N0": single["N0"]}
    names = ["rbp", "neumann", "readout", "hep_N0"]
    for n, deltas in swept.items():
        for place, beta in enumerate(inputs["betas"].tolist()):
            found[f"du_dbeta_N{n}_beta{beta}"] = {k: z[place] for k, z in deltas.items()}
            names.append(f"hep_N{n}_beta{beta}")
    learned = jax.tree.map(np.asarray, learned)
    for place, name in enumerate(names):
        found[name] = jax.tree.map(lambda z, place=place: z[place], learned)
    return _outputs(**found)


@functools.partial(_jit, static_argnames=("num_blocks", "act"))
def _online(params, x, y, beta, n, steps, num_blocks, act):
    vf = model.vector_field(act)
    found = equilibrium.online_error_vector(
        vf,
        params,
        model.zero_states(params, x),
        x=x,
        y=y,
        num_blocks=num_blocks,
        steps_per_block=steps,
        beta=beta,
        n=n,
    )
    grad = equilibrium.ep_grad(vf, params, u_free=found.u_mean, delta=found.delta, x=x, y=y)
    return {"avg_u": found.u_mean, "amp_u": found.delta, "grad": grad}


def online(inputs):
    case = _nested(inputs)
    return _outputs(
        **_online(
            *(case[name] for name in ("params", "x", "y", "beta", "N", "steps_per_block")),
            num_blocks=inputs["n_blocks"].item(),
            act=inputs["act"].item(),
        )
    )


def _jacobian_of(vf, params, u_free, x):
    return equilibrium.activity_jacobian(
        equilibrium.bypassed_field(vf, x), params, r_free=equilibrium.activate(vf, u_free)
    )


@functools.partial(_jit, static_argnames="act")
def _jacobian(params, u_free, x, act):
    dense = _jacobian_of(model.vector_field(act), params, u_free, x)
    return {
        "J_l1_l2_out": dense,
        "symmetry_ratio": equilibrium.jacobian_symmetry_ratio(dense),
    }


def jacobian(inputs):
    case = _nested(inputs)
    return _jacobian(case["params"], case["u_free"], case["x"], inputs["act"].item())


def _homeostasis(vf, params, u_free, x, eps):
    one_draw = jax.tree.map(lambda z: z[None], eps)
    return equilibrium.homeostatic_grad(
        equilibrium.bypassed_field(vf, x),
        params,
        r_free=equilibrium.activate(vf, u_free),
        eps=one_draw,
    )


@functools.partial(_jit, static_argnames="act")
def _homeo_loss(params, u_free, x, eps, act):
    vf = model.vector_field(act)
    loss, grad = _homeostasis(vf, params, u_free, x, eps)
    exact = equilibrium.homeostatic_loss_exact(_jacobian_of(vf, params, u_free, x))
    return {"loss": loss, "grad": grad, "exact_expectation": jnp.mean(exact)}


def homeo_loss(inputs):
    case = _nested(inputs)
    found = _homeo_loss(
        *(case[name] for name in ("params", "u_free", "x", "eps")), act=inputs["act"].item()
    )
    return _outputs(**found)


@functools.partial(_jit, static_argnames="act")
def _error_vectors(params, u_free, x, y, act):
    vf = model.vector_field(act)
    activities, slope = jax.jvp(
        lambda u: equilibrium.activate(vf, u), (u_free,), (jax.tree.map(jnp.ones_like, u_free),)
    )

    def joined(states):
        return jnp.concatenate(jax.tree.leaves(states), axis=1)

    dense = _jacobian_of(vf, params, u_free, x)
    ingredients = {
        "slope": joined(slope),
        "gradient": joined(equilibrium.loss_gradient(vf, params, activities, y)),
    }
    weights = dense + jnp.eye(dense.shape[-1])
    return {
        "ep_closed_form_l1_l2_out": equilibrium.exact_ep_error_vector(weights, **ingredients)[0],
        "bp_closed_form_l1_l2_out": equilibrium.exact_bp_error_vector(weights, **ingredients)[0],
    }


def error_vectors(inputs):
    case = _nested(inputs)
    return _error_vectors(
        *(case[name] for name in ("params", "u_free", "x", "y")), act=inputs["act"].item()
    )


@functools.partial(_jit, static_argnames="act")
def _cnn_vfield(params, x, y, u, beta, eps, act):
    vf = model.vector_field(act)
    data = {"x": x, "y": y}
    free = _free_states(vf, params, x, 30)
    loss, grad = _homeostasis(vf, params, free, x, eps)

    def ep(n, beta):
        delta = equilibrium.ep_error_vector(vf, params, free, **data, num_steps=10, beta=beta, n=n)
        return equilibrium.ep_grad(vf, params, u_free=free, delta=delta, **data)

    return {
        "vf": equilibrium.vector_field(vf, params, u, **data, beta=beta),
        "logits": model.logits(params, equilibrium.activate(vf, u)),
        "u_free_30": free,
        "homeo_loss": loss,
        "homeo_grad": grad,
        "bp_grad_T10": equilibrium.bp_grad(vf, params, free, **data, num_steps=10),
        "hep_N0_T10": ep(0, 0.0),
        "hep_N2_beta0.1_T10": ep(2, 0.1),
    }


def cnn_vfield(inputs):
    case = _nested(inputs)
    act = case.pop("act").item()
    return _outputs(**_cnn_vfield(**case, act=act))


ADAPTERS = {
    "sigmoid": _activation(equilibrium.shifted_sigmoid),
    "dsilu": _activation(equilibrium.dsilu),
    **{
        function.__name__: function
        for function in (
            sfm_pool,
            rotate,
            vfield,
            free_phase,
            gradients,
            online,
            jacobian,
            homeo_loss,
            error_vectors,
            cnn_vfield,
        )
    },
}

# Biases do not enter the Jacobian: 1e-18 was recorded for a gradient of 0.
TOLERANCES = {"cnn_vfield/homeo_grad": (1e-6, 1e-8, 1e-14)}
