"""Fixed points, Cauchy derivatives, error vectors and homeostasis on a small asymmetric network."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import equilibrium

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


@functools.partial(jax.jit, static_argnames=("vf", "num_steps"))
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
    square = sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (left, right))))  # noqa: B905
    return float(jnp.sqrt(square))


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16, jnp.complex64)
    def test_activations_at_their_centres(self, dtype):
        sigmoid = self.variant(equilibrium.shifted_sigmoid)(jnp.array([0.5, -1e4, 1e4], dtype))
        ramp = self.variant(equilibrium.dsilu)(jnp.array([1.0, -1e4, 1e4], dtype))
        self.assertEqual((sigmoid.dtype, ramp.dtype), (dtype, dtype))
        np.testing.assert_allclose(sigmoid.astype(complex), [0.5, 0, 1], atol=1e-7)
        tolerance = 4e-3 if dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(ramp.astype(complex), [0.5, 0, 1], atol=tolerance)

    @chex.variants(with_jit=True, without_jit=True)
    def test_relaxation_of_a_linear_map(self):
        relax = self.variant(
            lambda u: equilibrium.relax(lambda v: 1 - 0.5 * v, u, 7), static_argnums=()
        )
        found = relax(jnp.zeros(2))
        np.testing.assert_allclose(found, np.full(2, (1 - (-0.5) ** 7) / 1.5), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(0, 1, 2, 3, 4, 5, 8)
    def test_cauchy_derivative_of_the_exponential(self, n):
        beta = 0.5
        found = self.variant(
            lambda b: equilibrium.cauchy_derivative(lambda z: {"f": jnp.exp(z)}, b, n)
        )(beta)["f"]
        self.assertEqual(found.dtype, jnp.float32)
        if n == 1:
            expected = np.expm1(beta) / beta
        else:
            # Aliasing: the sum keeps the Taylor coefficients number 1, 1 + n, 1 + 2n, ...
            expected = 1.0 + sum(
                beta ** (n * k) / float(jnp.exp(jax.lax.lgamma(2.0 + n * k)))
                for k in range(1, 6)
                if n > 0
            )
        np.testing.assert_allclose(found, expected, rtol=3e-7 * 4)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(jnp.float32, jnp.bfloat16)
    def test_symmetry_measures_of_known_matrices(self, dtype):
        matrices = jnp.array(
            [[[1, 2], [2, 3]], [[0, 1], [-1, 0]], [[0, 2], [0, 0]], [[0, 0], [0, 0]]], dtype
        )
        ratio = self.variant(equilibrium.jacobian_symmetry_ratio)(matrices)
        loss = self.variant(equilibrium.homeostatic_loss_exact)(matrices)
        np.testing.assert_allclose(ratio, [1, 0, 0.5, 1], rtol=1e-6)
        np.testing.assert_allclose(loss, [0, 2, 2, 0], rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_log_residual_of_known_lengths(self):
        change = {
            "a": jnp.array([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
            "b": jnp.array([4j, 0.0, 10.0]),
        }
        found = self.variant(equilibrium.log_residual)(change)
        np.testing.assert_allclose(found, [np.log10(5), -8, 1], rtol=1e-6)


@pytest.mark.parametrize("act", [equilibrium.shifted_sigmoid, equilibrium.dsilu])
def test_activations_are_holomorphic(act, x64):
    points = jnp.array([0.3 + 0.2j, -2.0 - 0.1j, 5.0 + 0.5j, -400.0 + 1.0j, 400.0 - 1.0j])
    along_real = jax.jvp(act, (points,), (jnp.ones_like(points),))[1]
    along_imaginary = jax.jvp(act, (points,), (1j * jnp.ones_like(points),))[1]
    np.testing.assert_allclose(along_imaginary, 1j * along_real, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(act(jnp.conj(points)), jnp.conj(act(points)), rtol=1e-14)
    on_axis = jnp.linspace(-3, 3, 13)
    np.testing.assert_allclose(act(on_axis + 0j), act(on_axis), rtol=1e-12)


@pytest.mark.parametrize("act", [equilibrium.shifted_sigmoid, equilibrium.dsilu])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_slopes_stay_finite_far_out(act, dtype):
    far = jnp.array([-3e38, -1e4, -100, 0, 100, 1e4, 3e38], dtype) / 8
    slopes = jax.vmap(jax.grad(act))(far)
    assert np.all(np.isfinite(slopes))
    np.testing.assert_allclose(np.asarray(slopes, float)[[0, 1, -2, -1]], 0, atol=1e-3)
    turned = far.astype(jnp.complex64)
    assert np.all(np.isfinite(jax.jvp(act, (turned,), (jnp.ones_like(turned),))[1]))


def test_slope_of_the_sigmoid_is_one_at_one_half():
    assert jax.grad(equilibrium.shifted_sigmoid)(0.5 * jnp.ones(())) == pytest.approx(1)


def test_pool_lies_between_mean_and_maximum(x64):
    v = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 6, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(v, (3, 2), axis=(1, 2))[:, ::2, ::2]
    pool = jax.jit(equilibrium.softmax_pool, static_argnums=(1, 2))
    cold, warm = pool(v, (3, 2), (2, 2), 1e-4), pool(v, (3, 2), (2, 2), 1e9)
    np.testing.assert_allclose(cold, windows.max((-2, -1)), atol=1e-6)
    np.testing.assert_allclose(warm, windows.mean((-2, -1)), atol=1e-8)
    between = pool(v, (3, 2), (2, 2), 0.5)
    assert np.all((between < cold) & (between > warm))


def test_pool_commutes_with_a_shift_also_a_complex_one(x64):
    v = jnp.asarray(np.random.default_rng(2).normal(size=(1, 4, 4, 2)))
    shift = 0.7 + 0.4j
    moved = equilibrium.softmax_pool(v + shift)
    np.testing.assert_allclose(moved, equilibrium.softmax_pool(v) + shift, rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pool_is_finite_and_splits_ties_evenly(dtype):
    v = jnp.array([[1e4, -1e4], [3.0, 3.0]], dtype)[None, :, :, None]
    value, gradient = jax.value_and_grad(lambda v: equilibrium.softmax_pool(v).sum())(v)
    assert value == pytest.approx(1e4, rel=4e-3)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])
    tied = jax.grad(lambda v: equilibrium.softmax_pool(v).sum())(jnp.full((1, 2, 2, 1), 7, dtype))
    np.testing.assert_array_equal(tied, np.full((1, 2, 2, 1), 0.25))


def test_pool_refuses_windows_larger_than_the_map():
    with pytest.raises(AssertionError):
        equilibrium.softmax_pool(jnp.zeros((1, 2, 1, 3)))


def test_damping_ends_an_orbit_of_period_two():
    def flip(u):
        return -u

    start = jnp.ones(2)
    np.testing.assert_array_equal(equilibrium.relax(flip, start, 6), start)
    np.testing.assert_array_equal(equilibrium.relax(flip, start, 7), -start)
    np.testing.assert_array_equal(equilibrium.relax(flip, start, 1, damping=0.5), 0 * start)


def test_relax_keeps_half_precision_and_has_a_reverse_mode_gradient():
    start = jnp.ones(3, jnp.bfloat16)
    damped = equilibrium.relax(lambda u: 0.5 * u, start, 3, damping=jnp.float32(0.5))
    assert damped.dtype == jnp.bfloat16
    gradient = jax.grad(lambda a: equilibrium.relax(lambda u: a * u, 1.0 + 0 * a, 5))(2.0)
    assert gradient == pytest.approx(5 * 2.0**4)


def test_relax_until_counts_its_steps():
    found = jax.jit(lambda u: equilibrium.relax_until(lambda v: 0.5 * v, u, 0.1, 50))(jnp.ones(2))
    # Changes are 1/2, 1/4, 1/8, 1/16: the fourth is the first below the tolerance.
    assert (found.num_steps, found.change) == (4, 1 / 16)
    np.testing.assert_array_equal(found.states, np.full(2, 1 / 16))
    orbit = equilibrium.relax_until(lambda v: -v, jnp.ones(2, complex), 0.1, 9)
    assert (orbit.num_steps, orbit.change) == (9, 2)
    none = equilibrium.relax_until(lambda v: -v, jnp.ones(2), 0.1, 0)
    assert (none.num_steps, none.change) == (0, np.inf)


def test_relax_until_batches_and_has_a_forward_mode_derivative():
    def limit(a):
        return equilibrium.relax_until(lambda u: a + 0.5 * u, 0.0 * a, 1e-6, 100).states

    value, tangent = jax.jvp(jax.vmap(limit), (jnp.arange(3.0),), (jnp.ones(3),))
    np.testing.assert_allclose(value, 2 * np.arange(3), atol=1e-5)
    np.testing.assert_allclose(tangent[1:], 2, atol=1e-5)


def test_gradient_of_the_residual_is_finite_at_rest():
    gradient = jax.grad(lambda f: equilibrium.log_residual(f).sum())(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, 0)


def test_circle_closes_and_its_points_cancel(x64):
    points = equilibrium.circle_points(0.3, 6, jnp.arange(12))
    np.testing.assert_allclose(points[:6], points[6:], rtol=1e-14)
    np.testing.assert_allclose(abs(points), 0.3, rtol=1e-14)
    assert abs(jnp.sum(1 / points[:6])) < 1e-13


def test_cauchy_derivative_converges_only_inside_the_poles(x64):
    def f(z):
        return 1 / (1 - z)

    inside = [abs(equilibrium.cauchy_derivative(f, 0.5, n) - 1) for n in (2, 4, 8, 16, 32)]
    np.testing.assert_allclose(inside, [0.5**n / (1 - 0.5**n) for n in (2, 4, 8, 16, 32)])
    outside = [abs(equilibrium.cauchy_derivative(f, 2.0, n) - 1) for n in (4, 8, 16)]
    assert min(outside) > 0.9


def test_cauchy_derivative_takes_the_start_it_is_given():
    found = equilibrium.cauchy_derivative(lambda z: 3 * z + 1, 0.5, 1, f0=jnp.zeros(()))
    assert found == pytest.approx(5)
    with pytest.raises(AssertionError):
        equilibrium.cauchy_derivative(jnp.exp, 0.5, -1)


@pytest.mark.parametrize("vf", [FIELD, SMOOTH])
def test_error_vectors_converge_to_their_closed_forms(vf, x64):
    params, data = _network()
    u = _free(vf, params, data["x"])
    assert np.all(
        equilibrium.log_residual(equilibrium.vector_field(vf, params, u, x=data["x"])) == -8
    )
    exact_ep, exact_bp = jax.jit(_exact_errors, static_argnums=0)(vf, params, u, **data)

    @jax.jit
    def found(u):
        errors = equilibrium.ep_error_vector, equilibrium.rbp_error_vector
        neumann = equilibrium.neumann_rbp_error_vector
        return [_joined(f(vf, params, u, **data, num_steps=150)) for f in (*errors, neumann)]

    ep, rbp, neumann = found(u)
    np.testing.assert_allclose(ep, exact_ep, atol=1e-10 * np.abs(exact_ep).max())
    np.testing.assert_allclose(rbp, exact_bp, atol=1e-10 * np.abs(exact_bp).max())
    np.testing.assert_allclose(neumann, exact_bp, atol=1e-10 * np.abs(exact_bp).max())
    assert np.abs(exact_ep - exact_bp).max() > 0.05 * np.abs(exact_bp).max()


def test_gradients_agree_with_backpropagation_if_weights_are_symmetric(x64):
    @functools.partial(jax.jit, static_argnames="symmetric")
    def gradients(symmetric):
        params, data = _network(symmetric=symmetric)
        u = _free(FIELD, params, data["x"])
        delta = equilibrium.ep_error_vector(FIELD, params, u, **data, num_steps=150)
        ep = equilibrium.ep_grad(FIELD, params, u_free=u, delta=delta, **data)
        return ep, equilibrium.bp_grad(FIELD, params, u, **data, num_steps=150)

    ep, bp = gradients(True)
    chex.assert_trees_all_close(ep, bp, rtol=1e-8, atol=1e-12)
    ep, bp = gradients(False)
    assert _distance(ep, bp) > 0.01 * _distance(bp, jax.tree.map(jnp.zeros_like, bp))
    # The readout's own gradient knows nothing of the feedback.
    np.testing.assert_allclose(ep["readout"], bp["readout"], rtol=1e-8)


def test_backpropagation_is_the_gradient_of_the_fixed_points_loss(x64):
    params, data = _network()
    u = _free(FIELD, params, data["x"])
    bp = jax.jit(lambda p: equilibrium.bp_grad(FIELD, p, u, **data, num_steps=150))(params)

    @jax.jit
    def loss(step):
        moved = params | {"in": params["in"].at[2, 1].add(step)}
        r = equilibrium.activate(FIELD, _free(FIELD, moved, data["x"]))
        return _loss(moved, r, data["y"]) / BATCH

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert bp["in"][2, 1] == pytest.approx(float(slope), rel=1e-7)


def test_bias_of_finite_nudges_falls_with_the_power_of_the_phases(x64):
    params, data = _network()
    u = _free(SMOOTH, params, data["x"])

    @functools.partial(jax.jit, static_argnames="n")
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


def test_residual_tells_when_the_nudge_leaves_the_domain_of_convergence():
    params, data = _network(scale=1.0)
    u = _free(FIELD, params, data["x"])

    @jax.jit
    def residual(beta):
        return equilibrium.nudged_residual(FIELD, params, u, **data, num_steps=100, beta=beta, n=6)

    gentle, violent = residual(0.05), residual(4.0)
    assert gentle.shape == violent.shape == (4, BATCH)
    assert np.max(gentle) < -5 < -1 < np.max(violent)


def test_oscillating_nudge_agrees_with_separate_phases(x64):
    params, data = _network()
    u = _free(SMOOTH, params, data["x"])

    @jax.jit
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
    delta = jax.jit(
        lambda u: equilibrium.rbp_error_vector(FIELD, params, u, **data, num_steps=200)
    )(u)
    assert all(np.all(np.isfinite(d)) for d in jax.tree.leaves(delta))


def test_half_precision_gives_float32_gradients():
    params, data = _network(dtype=jnp.bfloat16)
    reference_params, reference = jax.tree.map(lambda z: z.astype(jnp.float32), (params, data))

    @jax.jit
    def gradient(params, x, y):
        u = _free(SMOOTH, params, x, 50)
        data = {"x": x, "y": y}
        delta = equilibrium.ep_error_vector(SMOOTH, params, u, **data, num_steps=20, beta=0.1, n=4)
        return equilibrium.ep_grad(SMOOTH, params, u_free=u, delta=delta, **data)

    found, expected = gradient(params, **data), gradient(reference_params, **reference)
    chex.assert_trees_all_equal_dtypes(found, expected)
    zero = jax.tree.map(jnp.zeros_like, expected)
    assert _distance(found, expected) < 0.02 * _distance(expected, zero)


def test_exact_error_does_not_mind_saturated_units():
    weights = jnp.array([[0.0, 0.5], [0.25, 0.0]])
    found = equilibrium.exact_ep_error_vector(
        weights, slope=jnp.array([0.0, 1.0]), gradient=jnp.array([7.0, 2.0])
    )
    np.testing.assert_allclose(found, [0, 2])


def test_cosine_by_layer():
    estimate = {"a": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "b": jnp.ones((2, 1, 2, 2))}
    reference = {"a": jnp.array([[1.0, 1.0], [3.0, 0.0]]), "b": -2 * jnp.ones((2, 1, 2, 2))}
    found = equilibrium.error_cosine(estimate=estimate, reference=reference)
    np.testing.assert_allclose(found["a"], [np.sqrt(0.5), 0], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [-1, -1], rtol=1e-6)
    with pytest.raises(TypeError):
        equilibrium.error_cosine(estimate, reference)


def test_jacobian_is_the_block_matrix_of_the_weights(x64):
    params, data = _network()
    u = _free(SMOOTH, params, data["x"])
    found = _jacobian(SMOOTH, params, u, data["x"])
    w = params["recurrent"]
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

    @jax.jit
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

    losses, gradients = draws(jax.random.key(0))
    value, gradient = jax.value_and_grad(exact)(params)
    assert abs(losses.mean() - value) < 3 * losses.std() / np.sqrt(4096)
    assert losses.std() > 0.1 * value
    # Along the exact gradient: a single number with a standard error of its own.
    length = _distance(gradient, jax.tree.map(jnp.zeros_like, gradient))
    along = sum(
        jnp.tensordot(g, e, e.ndim)
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

    @jax.jit
    def descend(params):
        def step(p, key):
            eps = equilibrium.gaussian_probes(key, r, 5)
            loss, gradient = equilibrium.homeostatic_grad(field, p, r_free=r, eps=eps)
            return jax.tree.map(lambda w, g: w - 0.3 * g, p, gradient), loss

        return jax.lax.scan(step, params, jax.random.split(jax.random.key(1), 500))

    after, _ = descend(params)
    np.testing.assert_array_equal(after["in"], params["in"])
    np.testing.assert_array_equal(after["readout"], params["readout"])
    for forward, feedback in (("a-b", "b-a"), ("b-out", "out-b")):
        w = after["recurrent"]
        np.testing.assert_allclose(w[forward], w[feedback].T, atol=1e-3)
        # Gradients of the two are mirror images: their mean never moves in expectation.
        assert np.abs(w[forward] - params["recurrent"][forward]).max() > 0.05


def test_mean_over_draws_and_finite_numbers():
    params, data = _network()
    field = equilibrium.bypassed_field(SMOOTH, data["x"])
    r = equilibrium.activate(SMOOTH, _free(SMOOTH, params, data["x"]))
    eps = equilibrium.gaussian_probes(jax.random.key(3), r, 5)
    chex.assert_tree_shape_prefix(eps, (5, BATCH))
    loss, gradient = equilibrium.homeostatic_grad(field, params, r_free=r, eps=eps)
    single = [
        equilibrium.homeostatic_loss(
            field, params, r_free=r, eps={layer: e[k] for layer, e in eps.items()}
        )
        for k in range(5)
    ]
    assert loss == pytest.approx(float(np.mean(single)), rel=1e-5)
    broken = params | {"recurrent": params["recurrent"] | {"a-b": jnp.full((5, 4), jnp.nan)}}
    _, gradient = equilibrium.homeostatic_grad(field, broken, r_free=r, eps=eps)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_rotation_of_feedback():
    rng = np.random.default_rng(4)
    forward, feedback = (jnp.asarray(rng.normal(size=s)) for s in ((300, 200), (200, 300)))
    for degrees in (0, 30, 90):
        turned = equilibrium.rotate_feedback(forward=forward, feedback=feedback, angle_deg=degrees)
        params = {"up": {"kernel": forward}, "down": {"kernel": turned}}
        # Independent matrices of 60000 entries are orthogonal within half a degree.
        assert equilibrium.feedback_angle(params, [("up", "down")]) == pytest.approx(degrees, abs=1)
    tied = equilibrium.rotate_feedback(forward=forward, feedback=feedback, angle_deg=0.0)
    np.testing.assert_array_equal(tied, forward.T)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 2)))
    same = equilibrium.rotate_feedback(forward=kernel, feedback=0 * kernel, angle_deg=0.0)
    np.testing.assert_array_equal(same, kernel)


def test_angle_pools_pairs_and_is_exact_at_its_ends():
    def connection(*values):
        return {"kernel": jnp.array([values])}

    params = {
        "ab": connection(1.0, 0.0),
        "ba": {"kernel": jnp.array([[2.0], [0.0]])},
        "cd": connection(0.0, 3.0),
        "dc": {"kernel": jnp.array([[0.0], [-3.0]])},
    }
    pooled = equilibrium.feedback_angle(params, [("ab", "ba"), ("cd", "dc")])
    cosine = (1 * 2 - 3 * 3) / np.sqrt((1 + 9) * (4 + 9))
    assert pooled == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-5)
    assert equilibrium.feedback_angle(params, [("ab", "ba")]) == 0
    assert equilibrium.feedback_angle(params, [("cd", "dc")]) == 180
    assert np.isnan(equilibrium.feedback_angle(params, []))
    gradient = jax.grad(lambda p: equilibrium.feedback_angle(p, [("ab", "ba")]))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
