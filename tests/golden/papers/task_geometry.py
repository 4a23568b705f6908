"""Adapters for task structure and nonlinearity (arXiv 2401.13558)."""

import jax
import jax.numpy as jnp
import numpy as np

from asym import activations, similarity
from experiments.task_geometry import splits


def cka(inputs):
    first, second = jnp.asarray(inputs["K1"]), jnp.asarray(inputs["K2"])
    return {"cka": similarity.cka(first, second), "cka_self": similarity.cka(first, first)}


def center_kernel(inputs):
    return {"Kc": similarity.center_kernel(jnp.asarray(inputs["K"]))}


def kernel_alignment_unbiased(inputs):
    kernels = jnp.asarray(inputs["K1"]), jnp.asarray(inputs["K2"])
    return {"hsic": similarity.unbiased_hsic(*kernels), "norm": similarity.unbiased_cka(*kernels)}


def participation_ratio(inputs):
    points = jnp.asarray(inputs["X"])
    return {
        "pr_centered": similarity.participation_ratio(points),
        "pr_uncentered": similarity.participation_ratio(points, center=False),
    }


def dot2dist(inputs):
    return {"D": similarity.kernel_to_sqdist(jnp.asarray(inputs["K"]))}


def _parallelism(pairing):
    @jax.jit
    def score(points, labels):
        return similarity.parallelism_score(points.T @ points, labels, pairing=pairing)

    return lambda inputs: {"ps": score(jnp.asarray(inputs["Z"]), jnp.asarray(inputs["y"]))}


def aligned_inputs(inputs):
    num_bits, num_targets = inputs["num_bits"].item(), inputs["num_targets"].item()
    task = similarity.aligned_inputs(num_bits, num_targets, jnp.asarray(inputs["alignment"]))
    targets = task.targets.astype(task.inputs.dtype)
    return {
        "H": task.dichotomies,
        "pi": task.spectrum,
        "X": task.inputs,
        "Y": task.targets,
        "cka_xy": similarity.cka(task.inputs @ task.inputs.T, targets @ targets.T),
    }


def _activation(name):
    """The pair that a recorded name stands for, such as relu_ub1 or relu_shift0.5."""
    for prefix, make in (
        ("relu_ub", activations.clipped_relu),
        ("relu_shift", activations.shifted_relu),
    ):
        if name.startswith(prefix):
            return make(float(name.removeprefix(prefix)))
    return {"tanh": activations.TANH, "relu": activations.RELU}[name]


def shallow_step(inputs):
    activation = _activation(str(inputs["activation"]))
    arrays = {k: jnp.asarray(v) for k, v in inputs.items() if k != "activation"}

    @jax.jit
    def step(W, b1, J, b2, x, y, lr):
        inside = x @ W.T + b1.T
        hidden = activation.value(inside)
        logits = hidden @ J.T + b2.T
        loss = jnp.mean(jnp.logaddexp(0, logits) - y * logits)
        error = y - jax.nn.sigmoid(logits)
        gradient = activations.hidden_gradient(
            inputs=x, slope=activation.derivative(inside), error=error, readout=J.T
        )
        return {
            "W_new": W - lr * gradient.weights.T,
            "b1_new": b1 - lr * gradient.bias[:, None],
            "J_new": J + lr * error.T @ hidden / len(x),
            "b2_new": b2 + lr * jnp.mean(error, axis=0)[:, None],
            "loss": loss,
            "hidden": hidden.T,
            "logits": logits,
        }

    return step(**arrays)


def nudged_xor(inputs):
    basis = jnp.asarray(inputs["basis"])
    return {"X": similarity.nudged_xor(jnp.asarray(inputs["epsilon"]), basis)}


def ccgp(inputs):
    condition, labels = inputs["cond"], inputs["y"]
    of_condition = [labels[condition == c][0] for c in np.unique(condition)]
    trained = splits.generalisation_splits(of_condition)
    scores = jax.jit(similarity.ccgp)(
        jnp.asarray(inputs["Z"]), jnp.asarray(condition), jnp.asarray(labels), jnp.asarray(trained)
    )
    return {"scores": scores, "train_sets": trained, "mean": jnp.mean(scores)}


ADAPTERS = {
    "cka": cka,
    "center_kernel": center_kernel,
    "kernel_alignment_unbiased": kernel_alignment_unbiased,
    "participation_ratio": participation_ratio,
    "dot2dist": dot2dist,
    "parallelism_exhaustive": _parallelism("exhaustive"),
    "parallelism_assignment": _parallelism("assignment"),
    "aligned_inputs": aligned_inputs,
    "shallow_step": shallow_step,
    "nudged_xor": nudged_xor,
    "ccgp": ccgp,
}

# Closed forms, but for: the authors' root rounded to 6 digits, values recorded in float32, and the
# accuracy of a classifier that the authors stop early, one of 20 points of a split.
TOLERANCES = {
    function: (1e-9, 1e-9, 0.0, 1e-12)
    for function in ADAPTERS
    if function not in ("aligned_inputs", "shallow_step", "nudged_xor", "ccgp")
}
TOLERANCES |= {
    f"aligned_inputs/{output}": (1e-5, 0.0, 0.0, 1e-6) for output in ("pi", "X", "cka_xy")
}
TOLERANCES |= {f"ccgp/{output}": (0.0, 0.0, 0.0, 0.051) for output in ("scores", "mean")}
