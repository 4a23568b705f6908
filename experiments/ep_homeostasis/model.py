"""The networks: fully connected with reciprocal or looped feedback, and convolutional.

Parameters are a dict of connections named "from-to" (`in-l1`, `l1-l2`, `l2-l1`, ...) plus the
`readout`.  The names are the wiring: forward connections have a kernel and a bias, feedback
connections a kernel alone.  Sizes are those of the kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from asym import equilibrium
from experiments.common.errors import UserError

Params = dict[str, Any]
States = dict[str, Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": equilibrium.shifted_sigmoid,
    "dsilu": equilibrium.dsilu,
}
LOSSES = ("xent", "mse")
# Wiring -> connections, each from one layer to another; forward ones climb.
WIRINGS = {
    "recip": ("in-l1", "l1-l2", "l2-out", "l2-l1", "out-l2"),
    "loop": ("in-l1", "l1-l2", "l2-out", "out-l1"),
}
CNN_CHANNELS = {"conv1": 128, "conv2": 256, "conv3": 512, "out": 512}

_READOUT = "readout"
_MESSAGE = "message"
_ORDER = ("in", "l1", "l2", "conv1", "conv2", "conv3", "out")
_LECUN = jax.nn.initializers.lecun_normal()


def vector_field(
    act: str = "sigmoid", loss: Literal["xent", "mse"] = "xent"
) -> equilibrium.VectorField:
    """The network as the functions that `asym.equilibrium` works with.

    Args:
      act: one of `ACTIVATIONS`.
      loss: `xent`, on the logits of the readout, or `mse`, on the activities of the last layer.

    Returns:
      Field, loss and activation; wiring and sizes come from the parameters they are given.

    Raises:
      UserError: on another activation or loss.
    """
    if act not in ACTIVATIONS:
        raise UserError(f"activation {act!r}: choose one of {', '.join(ACTIVATIONS)}")
    if loss not in LOSSES:
        raise UserError(f"loss {loss!r}: choose one of {', '.join(LOSSES)}")
    return equilibrium.VectorField(
        drive=drive,
        loss=cross_entropy if loss == "xent" else squared_error,
        activation=ACTIVATIONS[act],
    )


def drive(params: Params, activities: States, x: Inexact[Array, "batch ..."]) -> States:
    """Input of every layer from the activities, `H(r)`, all connections at once.

    Args:
      params: connections by name; a kernel (in, out) is dense, one (3, 3, low, high) is a
        convolution with softmax pooling or, without a bias, its top-down counterpart.
      activities: one array a layer, real or complex.
      x: images (B, d) or (B, H, W, C).

    Returns:
      One array a layer, shaped like the activities.

    Reference: card, "Vector field" and "CNN vector field".
    """
    total: States = {}
    for name, connection in params.items():
        if name == _READOUT:
            continue
        before, after = name.split("-")
        source = x if before == "in" else activities[before]
        if _MESSAGE in connection:
            message = connection[_MESSAGE]
        elif is_forward(name):
            message = _forward(name, connection, source)
        else:
            message = _backward(name, connection, activities[after], source)
        total[after] = total[after] + message if after in total else message
    return total


def clamped(params: Params, x: Inexact[Array, "batch ..."]) -> Params:
    """Parameters whose connection from the input is replaced by what it sends.

    The input does not change while the network relaxes, so that its message is the same in every
    step; as for gradients, what is pulled back through it is one product instead of one a step.

    Args:
      params: connections by name.
      x: images (B, d) or (B, H, W, C).

    Returns:
      New parameters, with which `drive` gives the same.
    """
    fixed = {
        name: {_MESSAGE: _forward(name, connection, x)}
        for name, connection in params.items()
        if name.startswith("in-")
    }
    return params | fixed


def logits(params: Params, activities: States) -> Inexact[Array, "batch classes"]:
    """Class scores, a linear readout of the last layer that takes no part in the dynamics.

    Args:
      params: the parameters.
      activities: one array a layer; `out` may have any shape (B, ...).

    Returns:
      (B, num_classes).
    """
    last = activities["out"]
    return _dense(params[_READOUT]["Dense_0"], last.reshape(last.shape[0], -1))


def cross_entropy(
    params: Params, activities: States, y: Float[Array, "batch classes"]
) -> Inexact[Array, ""]:
    """Cross entropy of the readout, summed over the batch, also for complex activities.

    Args:
      params: the parameters.
      activities: one array a layer.
      y: one-hot targets (B, C).

    Returns:
      The sum.
    """
    scores = logits(params, activities)
    # A real shift: it cancels, and the largest of complex numbers has no derivative.
    largest = jax.lax.stop_gradient(jnp.max(jnp.real(scores), axis=-1, keepdims=True))
    shifted = scores - largest
    log_total = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))
    return -jnp.sum(y * (shifted - log_total))


def squared_error(
    params: Params, activities: States, y: Float[Array, "batch classes"]
) -> Inexact[Array, ""]:
    """Half the squared error of the last layer's activities, summed over the batch.

    The square is not the squared modulus: the loss stays holomorphic.

    Args:
      params: unused; the last layer itself is the output.
      activities: one array a layer; `out` is (B, C).
      y: one-hot targets (B, C).

    Returns:
      The sum.
    """
    del params
    difference = activities["out"] - y
    return 0.5 * jnp.sum(difference * difference)


def zero_states(params: Params, x: Inexact[Array, "batch ..."]) -> States:
    """States at rest, from which every free phase starts.

    Args:
      params: the parameters.
      x: images (B, d) or (B, H, W, C).

    Returns:
      Zeros, one array a layer, in the dtype of the parameters.
    """
    states: States = {}
    for name in sorted((n for n in params if is_forward(n)), key=_place):
        before, after = name.split("-")
        kernel = params[name]["kernel"]
        shape = x.shape if before == "in" else states[before].shape
        if kernel.ndim == 2:
            shape = (shape[0], kernel.shape[1])
        else:
            border = 2 if _padding(name) == "VALID" else 0
            rows, columns = ((side - border) // 2 for side in shape[1:3])
            shape = (shape[0], rows, columns, kernel.shape[3])
        states[after] = jnp.zeros(shape, kernel.dtype)
    return states


def is_forward(name: str) -> bool:
    """Whether a connection leads towards the output; False for the readout."""
    if name == _READOUT:
        return False
    before, after = name.split("-")
    return _ORDER.index(before) < _ORDER.index(after)


def reciprocal_pairs(params: Params) -> list[tuple[str, str]]:
    """Names of the forward and the feedback connection between the same two layers.

    Args:
      params: the parameters.

    Returns:
      The pairs, from the input upwards; none in the looped wiring.
    """
    forward = sorted((name for name in params if is_forward(name)), key=_place)
    backward = ["-".join(reversed(name.split("-"))) for name in forward]
    return [pair for pair in zip(forward, backward, strict=True) if pair[1] in params]


def rotate(params: Params, angle_deg: float | Float[Array, ""]) -> Params:
    """Parameters whose feedback kernels lie at an angle to their forward partners.

    Args:
      params: parameters with independent feedback.
      angle_deg: 0 for symmetric weights, 90 for no change.

    Returns:
      New parameters; connections without a partner are the same.
    """
    turned = dict(params)
    for forward, feedback in reciprocal_pairs(params):
        kernel = equilibrium.rotate_feedback(
            forward=params[forward]["kernel"],
            feedback=params[feedback]["kernel"],
            angle_deg=angle_deg,
        )
        turned[feedback] = {"kernel": kernel}
    return turned


def init_mlp(
    key: Array,
    sizes: Sequence[int],
    *,
    arch: str = "recip",
    num_classes: int | None = None,
    angle_deg: float | Float[Array, ""] = 90.0,
) -> Params:
    """Fully connected network, LeCun normal kernels (each way its own fan-in), zero biases.

    Args:
      key: random key.
      sizes: units of input, first, second and last layer, (784, 256, 256, 10) in the paper.
      arch: `recip`, feedback between neighbours, or `loop`, from the last layer to the first.
      num_classes: outputs of the readout, as many as the last layer has units if None.
      angle_deg: angle of feedback to forward weights where they are reciprocal.

    Returns:
      The parameters.

    Raises:
      UserError: on another wiring or number of layers.
    """
    if arch not in WIRINGS:
        raise UserError(f"arch {arch!r}: choose one of {', '.join(WIRINGS)}")
    if len(sizes) != 4:
        raise UserError(f"sizes {tuple(sizes)}: input, two hidden layers and last layer are four")
    units = dict(zip(("in", "l1", "l2", "out"), sizes, strict=True))
    shapes = {}
    for name in WIRINGS[arch]:
        before, after = name.split("-")
        shapes[name] = (units[before], units[after])
    return _init(key, shapes, (sizes[-1], num_classes or sizes[-1]), angle_deg)


def init_cnn(
    key: Array,
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    width_mult: float = 1.0,
    image_size: int = 32,
    angle_deg: float | Float[Array, ""] = 0.0,
) -> Params:
    """Convolutional network of four layers with reciprocal top-down connections.

    Args:
      key: random key.
      in_channels: channels of the images.
      num_classes: outputs of the readout.
      width_mult: factor of the channels 128, 256, 512 and 512.
      image_size: side of the images, a multiple of 8, at least 32.
      angle_deg: angle of feedback to forward weights.

    Returns:
      The parameters; a feedback kernel has the shape of its forward partner.

    Raises:
      UserError: on a width that leaves a layer without channels, or another size of images.
    """
    channels = {name: int(width_mult * full) for name, full in CNN_CHANNELS.items()}
    if min(channels.values()) < 1:
        raise UserError(f"width_mult {width_mult}: leaves a layer without channels")
    if image_size < 32 or image_size % 8:
        raise UserError(f"image_size {image_size}: takes multiples of 8, at least 32")
    layers = [("in", in_channels), *channels.items()]
    shapes = {}
    for (low, low_size), (high, high_size) in itertools.pairwise(layers):
        shapes[f"{low}-{high}"] = (3, 3, low_size, high_size)
        if low != "in":
            shapes[f"{high}-{low}"] = (3, 3, low_size, high_size)
    positions = ((image_size // 8 - 2) // 2) ** 2
    return _init(key, shapes, (positions * channels["out"], num_classes), angle_deg)


def _init(
    key: Array,
    shapes: Mapping[str, tuple[int, ...]],
    readout: tuple[int, int],
    angle_deg: float | Float[Array, ""],
) -> Params:
    keys = jax.random.split(key, len(shapes) + 1)
    params: Params = {
        name: _connection(k, shape, with_bias=is_forward(name))
        for k, (name, shape) in zip(keys[1:], shapes.items(), strict=True)
    }
    params[_READOUT] = {"Dense_0": _connection(keys[0], readout, with_bias=True)}
    return rotate(params, angle_deg)


def _connection(key: Array, shape: tuple[int, ...], *, with_bias: bool) -> dict[str, Array]:
    kernel = _LECUN(key, shape)
    return {"kernel": kernel, "bias": jnp.zeros(shape[-1])} if with_bias else {"kernel": kernel}


def _forward(name: str, connection: dict[str, Array], source: Array) -> Array:
    if connection["kernel"].ndim == 2:
        return _dense(connection, source)
    return _convolve_and_pool(connection, source, _padding(name))


def _backward(name: str, connection: dict[str, Array], low: Array, high: Array) -> Array:
    if connection["kernel"].ndim == 2:
        return _dense(connection, high)
    return _top_down(connection, low, high, _padding(name))


def _dense(connection: dict[str, Array], source: Array) -> Array:
    product = source @ connection["kernel"]
    return product + connection["bias"] if "bias" in connection else product


def _padding(name: str) -> str:
    """Only the convolution below the last layer is not padded: it has to end in one pixel."""
    return "VALID" if "out" in name.split("-") else "SAME"


def convolution(
    kernel: Inexact[Array, "3 3 low high"],
    source: Inexact[Array, "batch height width low"],
    padding: str,
    *,
    as_product: bool,
) -> Inexact[Array, "batch rows columns high"]:
    """3x3 convolution of stride 1, by the library or as one product of nine shifted copies.

    The product is two to three times faster on a CPU inside the relaxation's loop, where a vmap
    over seeds makes a grouped convolution of the other form.

    Args:
      kernel: (3, 3, low, high), real or complex.
      source: (B, H, W, low), real or complex.
      padding: `SAME` or `VALID`.
      as_product: which of the two.

    Returns:
      (B, H, W, high), or 2 rows and columns less for `VALID`.
    """
    dtype = jnp.result_type(kernel, source)
    kernel, source = kernel.astype(dtype), source.astype(dtype)
    if not as_product:
        return jax.lax.conv_general_dilated(
            source,
            kernel,
            window_strides=(1, 1),
            padding=padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    if padding == "SAME":
        source = jnp.pad(source, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = source.shape[1] - 2, source.shape[2] - 2
    shifted = [source[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _convolution(kernel: Array, source: Array, padding: str) -> Array:
    on_cpu = jax.default_backend() == "cpu"
    return convolution(kernel, source, padding, as_product=on_cpu)


def _convolve_and_pool(connection: dict[str, Array], source: Array, padding: str) -> Array:
    maps = _convolution(connection["kernel"], source, padding)
    return equilibrium.softmax_pool(maps + connection["bias"])


def _top_down(connection: dict[str, Array], low: Array, high: Array, padding: str) -> Array:
    """Gradient, with respect to the lower layer, of `sum(pool(conv(low)) * high)`."""

    def pooled(activities: Array) -> Array:
        return equilibrium.softmax_pool(_convolution(connection["kernel"], activities, padding))

    # vjp does not conjugate: for complex layers this is the continuation of the real gradient.
    return jax.vjp(pooled, low)[1](high)[0]


def _place(name: str) -> int:
    return _ORDER.index(name.split("-")[0])
