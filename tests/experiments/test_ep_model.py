"""Networks of equilibrium propagation: wiring, initialisation, losses, top-down convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asym import equilibrium
from experiments.common.errors import UserError
from experiments.ep_homeostasis import model

SIZES = (7, 6, 5, 3)
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@_jit
def _init_cnn(angle_deg):
    return model.init_cnn(jax.random.key(0), width_mult=1 / 64, angle_deg=angle_deg)


def _cnn(angle_deg):
    """A tiny CNN with random biases, its activities and input."""
    params = _init_cnn(angle_deg)
    for number, (name, connection) in enumerate(params.items()):
        if "bias" in connection:
            params[name]["bias"] = _normal(number, *connection["bias"].shape)
    x = _normal(20, 1, 32, 32, 3)
    states = jax.eval_shape(model.zero_states, params, x)
    activities = {name: _normal(30, *u.shape) for name, u in states.items()}
    return params, activities, x


@pytest.mark.parametrize(("arch", "feedback"), [("recip", 2), ("loop", 1)])
def test_names_tell_the_wiring(arch, feedback):
    params = jax.eval_shape(
        lambda: model.init_mlp(jax.random.key(0), SIZES, arch=arch, num_classes=4)
    )
    backward = [n for n in params if n != "readout" and not model.is_forward(n)]
    assert len(backward) == feedback
    assert all(("bias" in params[n]) == model.is_forward(n) for n in params if n != "readout")
    assert params["readout"]["Dense_0"]["kernel"].shape == (3, 4)
    states = jax.eval_shape(lambda: model.zero_states(params, jnp.zeros((2, 7))))
    assert {name: u.shape for name, u in states.items()} == {
        "l1": (2, 6),
        "l2": (2, 5),
        "out": (2, 3),
    }


def test_field_of_the_fully_connected_networks():
    init = _jit(model.init_mlp, static_argnames=("sizes", "arch"))
    recip = init(jax.random.key(0), sizes=SIZES, arch="recip")
    loop = init(jax.random.key(1), sizes=SIZES, arch="loop")
    x = _normal(0, 4, 7)
    r = {"l1": _normal(1, 4, 6), "l2": _normal(2, 4, 5), "out": _normal(3, 4, 3)}

    def through(params, name):
        source = x if name.startswith("in-") else r[name.split("-")[0]]
        connection = jax.tree.map(np.asarray, params[name])
        return np.asarray(source) @ connection["kernel"] + connection.get("bias", 0)

    for params, messages in (
        (recip, {"l1": ("in-l1", "l2-l1"), "l2": ("l1-l2", "out-l2"), "out": ("l2-out",)}),
        (loop, {"l1": ("in-l1", "out-l1"), "l2": ("l1-l2",), "out": ("l2-out",)}),
    ):
        found = model.drive(params, r, x)
        for layer, names in messages.items():
            expected = sum(through(params, name) for name in names)
            np.testing.assert_allclose(found[layer], expected, rtol=1e-5, atol=1e-6)


def test_kernels_start_lecun_normal_each_way_with_its_own_fan_in():
    init = _jit(lambda key: model.init_mlp(key, (784, 256, 128, 10)))
    params = jax.tree.map(np.asarray, init(jax.random.key(0)))
    for name, fan_in in (("in-l1", 784), ("l1-l2", 256), ("l2-l1", 128)):
        kernel = params[name]["kernel"]
        assert kernel.std() == pytest.approx(fan_in**-0.5, rel=0.02)
        # Truncated at two standard deviations of the untruncated normal.
        assert abs(kernel).max() < 2 * fan_in**-0.5 / 0.87
    assert all(not np.any(c["bias"]) for n, c in params.items() if "bias" in c)


@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_feedback_starts_at_the_wanted_angle(degrees):
    init = _jit(lambda a: model.init_mlp(jax.random.key(0), (64, 256, 256, 256), angle_deg=a))
    params = init(degrees)
    pairs = model.reciprocal_pairs(params)
    assert pairs == [("l1-l2", "l2-l1"), ("l2-out", "out-l2")]
    assert equilibrium.feedback_angle(params, pairs) == pytest.approx(degrees, abs=1)


def test_looped_wiring_has_no_pair_to_rotate():
    init = _jit(lambda key: model.init_mlp(key, SIZES, arch="loop", angle_deg=0.0))
    params = init(jax.random.key(0))
    assert model.reciprocal_pairs(params) == []
    turned = model.rotate(params, 30.0)
    np.testing.assert_array_equal(turned["out-l1"]["kernel"], params["out-l1"]["kernel"])


def test_cross_entropy_is_the_usual_one_and_holomorphic(x64):
    params = {"readout": {"Dense_0": {"kernel": _normal(0, 3, 4), "bias": _normal(1, 4)}}}
    r = {"out": _normal(2, 5, 3)}
    y = jnp.eye(4)[jnp.array([0, 3, 1, 2, 2])]
    scores = model.logits(params, r)
    expected = optax.softmax_cross_entropy(scores, y).sum()
    np.testing.assert_allclose(model.cross_entropy(params, r, y), expected, rtol=1e-13)

    turned = {"out": r["out"] + 0.3j * _normal(3, 5, 3)}
    vf = model.vector_field()
    found = _jit(functools.partial(equilibrium.loss_gradient, vf))(params, turned, y)["out"]
    scores = np.asarray(model.logits(params, turned))
    probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = (probability - y) @ params["readout"]["Dense_0"]["kernel"].T
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_cross_entropy_is_finite_at_extreme_scores():
    params = {"readout": {"Dense_0": {"kernel": 1e4 * jnp.eye(3), "bias": jnp.zeros(3)}}}
    r = {"out": jnp.array([[1.0, -1.0, 0.5]])}
    y = jnp.array([[0.0, 1.0, 0.0]])
    loss, gradient = _jit(jax.value_and_grad(model.cross_entropy, argnums=1))(params, r, y)
    assert loss == pytest.approx(2e4)
    np.testing.assert_allclose(gradient["out"], [[1e4, -1e4, 0]])


def test_squared_error_pulls_activities_to_targets_also_complex_ones():
    vf = model.vector_field(loss="mse")
    r = {"l1": jnp.ones((1, 2), complex), "out": jnp.array([[0.5 + 1j, -1j]])}
    y = jnp.array([[1.0, 0.0]])
    found = equilibrium.loss_gradient(vf, {}, r, y)
    np.testing.assert_allclose(found["out"], r["out"] - y)
    np.testing.assert_array_equal(found["l1"], 0)


def test_sizes_of_the_convolutional_network():
    params = jax.eval_shape(lambda: model.init_cnn(jax.random.key(0), num_classes=100))
    shapes = {name: c["kernel"].shape for name, c in params.items() if name != "readout"}
    assert shapes == {
        "in-conv1": (3, 3, 3, 128),
        "conv1-conv2": (3, 3, 128, 256),
        "conv2-conv1": (3, 3, 128, 256),
        "conv2-conv3": (3, 3, 256, 512),
        "conv3-conv2": (3, 3, 256, 512),
        "conv3-out": (3, 3, 512, 512),
        "out-conv3": (3, 3, 512, 512),
    }
    assert params["readout"]["Dense_0"]["kernel"].shape == (512, 100)
    states = jax.eval_shape(lambda: model.zero_states(params, jnp.zeros((2, 32, 32, 3))))
    assert {name: u.shape for name, u in states.items()} == {
        "conv1": (2, 16, 16, 128),
        "conv2": (2, 8, 8, 256),
        "conv3": (2, 4, 4, 512),
        "out": (2, 1, 1, 512),
    }


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_both_forms_of_the_convolution_agree(padding, x64):
    kernel = _normal(0, 3, 3, 2, 4)
    source = _normal(1, 2, 6, 5, 2) + 1j * _normal(2, 2, 6, 5, 2)
    convolve = _jit(model.convolution, static_argnames=("padding", "as_product"))
    library, product = (
        convolve(kernel, source, padding=padding, as_product=flag) for flag in (False, True)
    )
    np.testing.assert_allclose(product, library, rtol=1e-12, atol=1e-13)


def test_field_of_the_convolutional_network_is_analytic(x64):
    params, r, x = _cnn(angle_deg=90.0)
    turned = {name: z + 0.1j * _normal(40, *z.shape) for name, z in r.items()}
    direction = {name: _normal(50, *z.shape) for name, z in r.items()}

    @_jit
    def value_and_slope(activities, factor):
        tangent = jax.tree.map(lambda d: factor * d, direction)
        return jax.jvp(lambda z: model.drive(params, z, x), (activities,), (tangent,))

    value, along_real = value_and_slope(turned, 1.0 + 0j)
    _, along_imaginary = value_and_slope(turned, 1j)
    mirrored, _ = value_and_slope(jax.tree.map(np.conj, turned), 1.0 + 0j)
    for layer, h in value.items():
        np.testing.assert_allclose(mirrored[layer], np.conj(h), rtol=1e-10, atol=1e-13)
        # Derivatives along the two axes differ by the factor i alone (Cauchy-Riemann).
        expected = 1j * np.asarray(along_real[layer])
        np.testing.assert_allclose(along_imaginary[layer], expected, rtol=1e-9, atol=1e-12)


def test_convolutional_jacobian_is_symmetric_exactly_if_weights_are(x64):
    @_jit
    def loss(params, r, x):
        field = equilibrium.bypassed_field(model.vector_field("dsilu"), x)
        eps = {name: _normal(60, *z.shape) for name, z in r.items()}
        return equilibrium.homeostatic_loss(field, params, r_free=r, eps=eps)

    # With J symmetric every single draw vanishes, not only the mean.
    assert loss(*_cnn(angle_deg=0.0)) == pytest.approx(0, abs=1e-12)
    assert abs(loss(*_cnn(angle_deg=90.0))) > 1e-3


def test_bad_settings_are_refused_in_one_line():
    key = jax.random.key(0)
    for refused in (
        lambda: model.vector_field("relu"),
        lambda: model.vector_field(loss="hinge"),
        lambda: model.init_mlp(key, SIZES, arch="ring"),
        lambda: model.init_mlp(key, (7, 6, 3)),
        lambda: model.init_cnn(key, width_mult=1 / 1000),
        lambda: model.init_cnn(key, image_size=28),
    ):
        with pytest.raises(UserError) as error:
            refused()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("arch", ["recip", "loop", "cnn"])
def test_a_clamped_input_sends_the_same(arch, x64):
    if arch == "cnn":
        params, r, x = _cnn(angle_deg=90.0)
    else:
        params = _jit(lambda key: model.init_mlp(key, SIZES, arch=arch))(jax.random.key(0))
        x = _normal(0, 4, 7)
        r = {"l1": _normal(1, 4, 6), "l2": _normal(2, 4, 5), "out": _normal(3, 4, 3)}

    @_jit
    def both(params, r, x):
        return model.drive(params, r, x), model.drive(model.clamped(params, x), r, 0 * x)

    plain, clamped = both(params, r, x)
    for layer in plain:
        np.testing.assert_allclose(clamped[layer], plain[layer], rtol=1e-12)
