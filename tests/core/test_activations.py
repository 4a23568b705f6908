import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from asym import activations

PAIRS = {
    "tanh": activations.TANH,
    "relu": activations.RELU,
    "identity": activations.IDENTITY,
    "softplus": activations.SOFTPLUS,
    "leaky": activations.leaky_relu(0.01),
    "clipped": activations.clipped_relu(1.5),
    "shifted": activations.shifted_relu(-0.5),
}


class VariantsTest(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(name=("tanh", "clipped", "softplus"), dtype=(jnp.float32, jnp.bfloat16))
    def test_slopes_are_those_of_the_values(self, name, dtype):
        pair = PAIRS[name]
        u = jnp.array([-3.0, -0.7, 0.2, 0.9, 2.5], dtype)
        value, derivative = self.variant(pair.value)(u), self.variant(pair.derivative)(u)
        self.assertEqual({value.dtype, derivative.dtype}, {jnp.dtype(dtype)})
        slope = jax.vmap(jax.grad(pair.differentiable()))(u)
        # tanh' may be rounded differently in another program.
        np.testing.assert_allclose(slope, derivative, rtol=2e-5 if dtype == jnp.float32 else 2e-2)
        if dtype == jnp.float32:
            difference = (pair.value(u + 1e-2) - pair.value(u - 1e-2)) / 2e-2
            np.testing.assert_allclose(derivative, difference, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "at", "slope"),
    [
        ("relu", 0.0, 0.0),
        ("leaky", 0.0, 0.01),
        ("clipped", 0.0, 0.0),
        ("clipped", 1.5, 1.0),
        ("clipped", 1.6, 0.0),
        ("shifted", 0.5, 0.0),
    ],
)
def test_conventions_at_kinks(name, at, slope):
    pair = PAIRS[name]
    assert pair.derivative(jnp.float32(at)) == np.float32(slope)
    assert jax.grad(pair.differentiable())(jnp.float32(at)) == np.float32(slope)


def test_tails():
    far = jnp.array([-1e4, 1e4], jnp.float32)
    slopes = {name: np.asarray(pair.derivative(far)) for name, pair in PAIRS.items()}
    assert all(np.all(np.isfinite(s)) for s in slopes.values())
    for name in ("tanh", "clipped"):
        np.testing.assert_array_equal(slopes[name], [0, 0])
    for name in ("relu", "shifted", "softplus"):
        np.testing.assert_array_equal(slopes[name], [0, 1])


@pytest.mark.parametrize("name", ["tanh", "clipped"])
def test_the_hidden_gradient_is_that_of_the_summed_loss(name):
    pair, rng = PAIRS[name], np.random.default_rng(0)
    with jax.enable_x64(True):
        x, y = rng.normal(size=(11, 7)), rng.integers(0, 2, (11, 2))
        w, b, readout = rng.normal(size=(7, 9)), rng.normal(size=9), rng.normal(size=(9, 2))
        u = x @ w + b
        found = activations.hidden_gradient(
            inputs=jnp.asarray(x),
            slope=pair.derivative(jnp.asarray(u)),
            error=y - jax.nn.sigmoid(pair.value(jnp.asarray(u)) @ readout),
            readout=jnp.asarray(readout),
        )

        def loss(w, b):
            logits = pair.differentiable()(x @ w + b) @ readout
            return 2 * jnp.mean(jnp.logaddexp(0, logits) - y * logits)

        expected = jax.grad(loss, (0, 1))(jnp.asarray(w), jnp.asarray(b))
        np.testing.assert_allclose(found.weights, expected[0], atol=1e-14)
        np.testing.assert_allclose(found.bias, expected[1], atol=1e-14)
