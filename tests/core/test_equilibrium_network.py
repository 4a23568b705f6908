"""Error vectors and homeostasis of a small network with asymmetric reciprocal connections."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asym import equilibrium

# Programs that run once: most of the time goes into making them, and less so unoptimised.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

UNITS = {"a": 5, "b": 4, "out": 3}
BATCH, INPUTS = 3, 6


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _drive(params, activities, x):
    total = {"a": x @ params["in"]}
    for name, weights in params["recurrent"].items():
        before, after = name.split("-")
        message = activities[before] @ weights
        total[after] = total[after] + message if after in total else message
    return total


def _loss(params, activities, y):
    scores = activities["out"] @ params["readout"]
    largest = jax.lax.stop_gradient(jnp.max(jnp.real(scores), axis=1, keepdims=True))
    log_total = jnp.log(jnp.sum(jnp.exp(scores - largest), axis=1, keepdims=True))
    return -jnp.sum(y * (scores - largest - log_total))


FIELD = equilibrium.VectorField(_drive, _loss, equilibrium.shifted_sigmoid)
SMOOTH = FIELD._replace(activation=equilibrium.dsilu)


def _network(*, symmetric=False, scale=0.4, dtype=None):
    """Parameters, input and targets of a net with reciprocal connections."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    recurrent = {"a-b": draw(5, 4), "b-out": draw(4, 3), "b-a": draw(4, 5), "out-b": draw(3, 4)}
    if symmetric:
        recurrent |= {"b-a": recurrent["a-b"].T, "out-b": recurrent["b-out"].T}
    params = {"in": draw(INPUTS, 5), "recurrent": recurrent, "readout": draw(3, 3)}
    x = jnp.asarray(rng.uniform(size=(BATCH, INPUTS)), dtype)
    return params, {"x": x, "y": jnp.eye(3, dtype=dtype)}


def _zeros(dtype=None):
    return {layer: jnp.zeros((BATCH, n), dtype) for layer, n in UNITS.items()}


@functools.partial(jax.jit, static_argnames="vf")
def _free(vf, params, x, num_steps=400):
    def step(u):
        return equilibrium.next_states(vf, params, u, x=x)

    return equilibrium.relax(step, _zeros(x.dtype), num_steps)


def _joined(states):
    return jnp.concatenate(jax.tree.leaves(states), axis=1)


def _jacobian(vf, params, u, x):
    field = equilibrium.bypassed_field(vf, x)
    return equilibrium.activity_jacobian(field, params, r_free=equilibrium.activate(vf, u))


def _exact_errors(vf, params, u, x, y):
    weights = _jacobian(vf, params, u, x) + jnp.eye(12)
    r, slope = jax.jvp(
        functools.partial(equilibrium.activate, vf), (u,), (jax.tree.map(jnp.ones_like, u),)
    )
    force = _joined(equilibrium.loss_gradient(vf, params, r, y))
    arguments = {"slope": _joined(slope), "gradient": force}
    return (
        equilibrium.exact_ep_error_vector(weights, **arguments),
        equilibrium.exact_bp_error_vector(weights, **arguments),
    )


def _distance(left, right):
    left, right = (map(np.asarray, jax.tree.leaves(tree)) for tree in (left, right))
    return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(left, right, strict=True)))


def _length(tree):
    return _distance(tree, jax.tree.map(np.zeros_like, tree))


def test_error_vectors_converge_to_their_closed_forms(x64):
    params, data = _network()
    u = _free(FIELD, params, data["x"])

    @_jit
    def errors(params, u, x, y):
        settings = {"x": x, "y": y, "num_steps": 150}
        return (
            equilibrium.log_residual(equilibrium.vector_field(FIELD, params, u, x=x)),
            _exact_errors(FIELD, params, u, x, y),
            _joined(equilibrium.ep_error_vector(FIELD, params, u, **settings)),
            _joined(equilibrium.rbp_error_vector(FIELD, params, u, **settings)),
            _joined(equilibrium.neumann_rbp_error_vector(FIELD, params, u, **settings)),
        )

    residual, exact, ep, rbp, neumann = jax.tree.map(np.asarray, errors(params, u, **data))
    exact_ep, exact_bp = exact
    np.testing.assert_allclose(residual, -8, rtol=1e-6)
    np.testing.assert_allclose(ep, exact_ep, atol=1e-10 * abs(exact_ep).max())
    np.testing.assert_allclose(rbp, exact_bp, atol=1e-10 * abs(exact_bp).max())
    np.testing.assert_allclose(neumann, exact_bp, atol=1e-10 * abs(exact_bp).max())
    assert abs(exact_ep - exact_bp).max() > 0.05 * abs(exact_bp).max()


def test_gradients_agree_with_backpropagation_if_weights_are_symmetric(x64):
    @_jit
    def gradients(params, x, y):
        data = {"x": x, "y": y}
        u = _free(FIELD, params, x)
        delta = equilibrium.ep_error_vector(FIELD, params, u, **data, num_steps=150)
        ep = equilibrium.ep_grad(FIELD, params, u_free=u, delta=delta, **data)
        return ep, equilibrium.bp_grad(FIELD, params, u, **data, num_steps=150)

    params, data = _network(symmetric=True)
    ep, bp = gradients(params, **data)
    chex.assert_trees_all_close(ep, bp, rtol=1e-8, atol=1e-12)
    params, data = _network()
    ep, bp = gradients(params, **data)
    assert _distance(ep, bp) > 0.01 * _length(bp)
    # The readout's own gradient knows nothing of the feedback.
    np.testing.assert_allclose(ep["readout"], bp["readout"], rtol=1e-8)


def test_backpropagation_is_the_gradient_of_the_fixed_points_loss(x64):
    params, data = _network()
    u = _free(FIELD, params, data["x"])
    bp = _jit(lambda p: equilibrium.bp_grad(FIELD, p, u, **data, num_steps=150))(params)

    @_jit
    def loss(step):
        moved = params | {"in": params["in"].at[2, 1].add(step)}
        r = equilibrium.activate(FIELD, _free(FIELD, moved, data["x"]))
        return _loss(moved, r, data["y"]) / BATCH

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert bp["in"][2, 1] == pytest.approx(float(slope), rel=1e-7)


def test_bias_of_finite_nudges_falls_with_the_power_of_the_phases(x64):
    params, data = _network()
    u = _free(SMOOTH, params, data["x"])

    @functools.partial(_jit, static_argnames="n")
    def error(beta, n):
        return equilibrium.ep_error_vector(SMOOTH, params, u, **data, num_steps=150, beta=beta, n=n)

    exact = error(0.0, 0)
    for n in (1, 2, 4):
        betas = 0.2, 0.1
        biases = [_distance(error(beta, n), exact) for beta in betas]
        slope = np.log(biases[0] / biases[1]) / np.log(betas[0] / betas[1])
        assert slope == pytest.approx(n, abs=0.3)
    assert _distance(error(0.1, 6), exact) < 1e-7 * _distance(
        exact, jax.tree.map(jnp.zeros_like, u)
    )


def test_one_nudge_is_the_difference_to_the_free_activities(x64):
    params, data = _network()
    u = _free(FIELD, params, data["x"], 5)
    nudged = equilibrium.nudged_phase(FIELD, params, u, **data, num_steps=3, beta=0.4)
    found = equilibrium.ep_error_vector(FIELD, params, u, **data, num_steps=3, beta=0.4, n=1)
    before, after = (equilibrium.activate(FIELD, v) for v in (u, nudged))
    expected = jax.tree.map(lambda a, b: (a - b) / 0.4, after, before)
    chex.assert_trees_all_close(found, expected, rtol=1e-13)


def test_defect_tells_when_the_circle_surrounds_a_singularity(x64):
    params, data = _network()
    u = _free(FIELD, params, data["x"])

    @_jit
    def diagnose(beta, steps):
        settings = {"num_steps": steps, "beta": beta, "n": 6}
        delta = equilibrium.ep_error_vector(FIELD, params, u, **data, **settings)
        return equilibrium.diagnose_circle(FIELD, params, u, **data, **settings), _joined(delta)

    exact = np.asarray(_jit(_exact_errors, static_argnums=0)(FIELD, params, u, **data)[0])
    for beta, trusted in ((0.1, True), (6.0, False)):
        found, delta = diagnose(beta, 300)
        assert found.log_residual.shape == (4, BATCH)
        np.testing.assert_allclose(found.log_residual, -8, atol=1e-3)
        bias = np.linalg.norm(delta - exact, axis=1) / np.linalg.norm(exact, axis=1)
        assert np.all((found.defect < 1e-3) == trusted)
        assert np.all((bias < 1e-3) == trusted)
    # After a single step nothing is settled yet.
    assert np.all(diagnose(0.1, 1)[0].log_residual.max(axis=0) > -4)


def test_oscillating_nudge_agrees_with_separate_phases(x64):
    params, data = _network()
    u = _free(SMOOTH, params, data["x"])

    @_jit
    def both(u):
        online = equilibrium.online_error_vector(
            SMOOTH, params, u, **data, num_blocks=8, steps_per_block=150, beta=0.1, n=4
        )
        phases = equilibrium.ep_error_vector(
            SMOOTH, params, u, **data, num_steps=150, beta=0.1, n=4
        )
        return online, phases

    online, phases = both(u)
    chex.assert_trees_all_close(online.delta, phases, rtol=1e-9, atol=1e-12)
    # The mean over a circle is the value at its centre, up to the fourth power of its radius.
    chex.assert_trees_all_close(online.u_mean, u, atol=1e-6)


def test_recurrent_backpropagation_stays_finite_where_it_diverges():
    params, data = _network(scale=40.0)
    u = jax.tree.map(lambda z: z + 0.5, _zeros())
    delta = _jit(lambda u: equilibrium.rbp_error_vector(FIELD, params, u, **data, num_steps=200))(u)
    assert all(np.all(np.isfinite(d)) for d in jax.tree.leaves(delta))


def test_half_precision_gives_float32_gradients():
    params, data = _network(dtype=jnp.bfloat16)
    reference_params, reference = _jit(jax.tree.map, static_argnums=0)(
        lambda z: z.astype(jnp.float32), (params, data)
    )

    @_jit
    def gradient(params, x, y):
        u = _free(SMOOTH, params, x, 50)
        data = {"x": x, "y": y}
        delta = equilibrium.ep_error_vector(SMOOTH, params, u, **data, num_steps=20, beta=0.1, n=4)
        return equilibrium.ep_grad(SMOOTH, params, u_free=u, delta=delta, **data)

    found, expected = gradient(params, **data), gradient(reference_params, **reference)
    chex.assert_trees_all_equal_dtypes(found, expected)
    # 50 steps with 8 bits; float32 would be wrong by 1e-6.
    assert _distance(found, expected) < 0.05 * _length(expected)


def test_jacobian_is_the_block_matrix_of_the_weights(x64):
    params, data = _network()
    u = _free(SMOOTH, params, data["x"])
    found = _jit(_jacobian, static_argnums=0)(SMOOTH, params, u, data["x"])
    w = jax.tree.map(np.asarray, params["recurrent"])
    rows = [
        [np.zeros((5, 5)), w["b-a"].T, np.zeros((5, 3))],
        [w["a-b"].T, np.zeros((4, 4)), w["out-b"].T],
        [np.zeros((3, 5)), w["b-out"].T, np.zeros((3, 3))],
    ]
    np.testing.assert_allclose(found, np.broadcast_to(np.block(rows) - np.eye(12), (3, 12, 12)))


def test_homeostasis_is_unbiased_in_value_and_gradient(x64):
    params, data = _network()
    u = _free(SMOOTH, params, data["x"])
    field = equilibrium.bypassed_field(SMOOTH, data["x"])
    r = equilibrium.activate(SMOOTH, u)

    @_jit
    def draws(key):
        eps = equilibrium.gaussian_probes(key, r, 4096)
        return jax.vmap(
            jax.value_and_grad(
                lambda p, e: equilibrium.homeostatic_loss(field, p, r_free=r, eps=e)
            ),
            (None, 0),
        )(params, eps)

    def exact(params):
        losses = equilibrium.homeostatic_loss_exact(_jacobian(SMOOTH, params, u, data["x"]))
        return jnp.mean(losses)

    losses, gradients = jax.tree.map(np.asarray, draws(jax.random.key(0)))
    value, gradient = jax.tree.map(np.asarray, _jit(jax.value_and_grad(exact))(params))
    assert abs(losses.mean() - value) < 3 * losses.std() / np.sqrt(4096)
    assert losses.std() > 0.1 * value
    # Along the exact gradient: a single number with a standard error of its own.
    length = _length(gradient)
    along = sum(
        np.tensordot(g, e, e.ndim)
        for g, e in zip(*map(jax.tree.leaves, (gradients, gradient)), strict=True)
    )
    assert abs(along.mean() - length**2) < 3 * along.std() / np.sqrt(4096)
    # Each entry on its own: 95 entries, so that 4.5 standard errors are reached once in 1000 runs.
    for sampled, expected in zip(*map(jax.tree.leaves, (gradients, gradient)), strict=True):
        error = np.abs(sampled.mean(0) - expected)
        assert np.all(error <= 4.5 * sampled.std(0) / np.sqrt(4096))


def test_homeostasis_acts_on_recurrent_weights_alone_and_makes_them_symmetric(x64):
    params, data = _network()
    field = equilibrium.bypassed_field(SMOOTH, data["x"])
    r = equilibrium.activate(SMOOTH, _free(SMOOTH, params, data["x"]))

    @_jit
    def descend(params):
        def step(p, now):
            key, rate = now
            eps = equilibrium.gaussian_probes(key, r, 64)
            _, gradient = equilibrium.homeostatic_grad(field, p, r_free=r, eps=eps)
            return jax.tree.map(lambda w, g: w - rate * g, p, gradient), None

        # The gradient of a draw does not vanish at symmetry: the rate has to.
        rates = jnp.linspace(0.5, 0, 200)
        return jax.lax.scan(step, params, (jax.random.split(jax.random.key(1), 200), rates))[0]

    after = descend(params)
    np.testing.assert_array_equal(after["in"], params["in"])
    np.testing.assert_array_equal(after["readout"], params["readout"])
    for forward, feedback in (("a-b", "b-a"), ("b-out", "out-b")):
        old, new = params["recurrent"], after["recurrent"]
        before = np.abs(old[forward] - old[feedback].T).max()
        assert np.abs(new[forward] - new[feedback].T).max() < 0.02 * before


def test_mean_over_draws_and_finite_numbers(x64):
    params, data = _network()
    field = equilibrium.bypassed_field(SMOOTH, data["x"])
    r = equilibrium.activate(SMOOTH, _free(SMOOTH, params, data["x"]))
    eps = equilibrium.gaussian_probes(jax.random.key(3), r, 5)
    chex.assert_tree_shape_prefix(eps, (5, BATCH))
    gradient_of = _jit(lambda p: equilibrium.homeostatic_grad(field, p, r_free=r, eps=eps))
    loss, _ = gradient_of(params)
    loss_of = _jit(lambda e: equilibrium.homeostatic_loss(field, params, r_free=r, eps=e))
    single = [loss_of({layer: e[k] for layer, e in eps.items()}) for k in range(5)]
    assert loss == pytest.approx(float(np.mean(single)), rel=1e-5)
    broken = params | {"recurrent": params["recurrent"] | {"a-b": jnp.full((5, 4), jnp.nan)}}
    _, gradient = gradient_of(broken)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
