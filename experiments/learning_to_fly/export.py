"""A trained policy for other programs: .npz, and plain C for a vehicle without libraries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import files
from experiments.common.errors import UserError

LAYERS = ("first", "second", "last")
_TOLERANCE = 1e-5


def write(params: Mapping[str, Any], folder: Path, *, name: str) -> None:
    """Writes `<name>.npz` and `<name>.h`, and checks what it wrote.

    Args:
      params: Parameters of an actor, by layer.
      folder: Where.
      name: Of the files.

    Raises:
      UserError: A parameter is not finite, or the folder cannot be written.
    """
    arrays = {f"{at}.{part}": np.asarray(params[at][part]) for at in LAYERS for part in _PARTS}
    for key, value in arrays.items():
        if not np.isfinite(value).all():
            raise UserError(f"{name}: {key} is not finite; a policy like this is not exported")
    files.write_arrays(folder / f"{name}.npz", arrays)
    files.write_bytes(folder / f"{name}.h", header(arrays).encode())


_PARTS = ("kernel", "bias")


def fast_tanh(x: np.ndarray) -> np.ndarray:
    """`asym.control.fast_tanh` in NumPy.

    Args:
      x: Numbers.

    Returns:
      Numbers in [-1, 1].
    """
    c = np.clip(x, -3, 3)
    return c * (27 + c * c) / (27 + 9 * c * c)


def evaluate(arrays: Mapping[str, np.ndarray], seen: np.ndarray) -> np.ndarray:
    """The policy in NumPy, to check one that was exported.

    Args:
      arrays: What an exported .npz holds.
      seen: Observations (batch, size).

    Returns:
      Actions (batch, 4).
    """
    for layer in LAYERS:
        seen = fast_tanh(seen @ arrays[f"{layer}.kernel"] + arrays[f"{layer}.bias"])
    return seen


def check(path: Path, expected: np.ndarray, seen: np.ndarray) -> float:
    """Evaluates an exported policy in NumPy and compares it.

    Args:
      path: The .npz.
      expected: Actions of the policy that was exported (batch, 4).
      seen: What it saw (batch, size).

    Returns:
      The largest deviation.

    Raises:
      UserError: The file is damaged or holds another policy.
    """
    arrays = files.read_arrays(path)
    missing = {f"{layer}.{part}" for layer in LAYERS for part in _PARTS} - arrays.keys()
    if missing:
        raise UserError(f"{path} is no exported policy: it lacks {', '.join(sorted(missing))}")
    deviation = float(np.abs(evaluate(arrays, seen) - expected).max())
    if not deviation <= _TOLERANCE:
        raise UserError(f"{path} holds another policy: actions differ by {deviation:.2g}")
    return deviation


def header(arrays: Mapping[str, np.ndarray]) -> str:
    """The policy as C99 without libraries.

    Args:
      arrays: Kernels (inputs, outputs) and biases by layer.

    Returns:
      The text of a header; `asym_policy(observation, action)` evaluates it.
    """
    sizes = [arrays["first.kernel"].shape[0]] + [arrays[f"{x}.bias"].size for x in LAYERS]
    lines = [
        "/* A policy for a quadrotor: observations to four rotor set-points in [-1, 1].",
        "   Position, rotation matrix row by row, velocity, angular velocity in the body's frame,",
        f"   then the last {(sizes[0] - 18) // 4} actions, oldest first. Include it once. */",
        "#ifndef ASYM_POLICY_H",
        "#define ASYM_POLICY_H",
        f"#define ASYM_POLICY_INPUTS {sizes[0]}",
        f"#define ASYM_POLICY_OUTPUTS {sizes[-1]}",
    ]
    for layer in LAYERS:
        for part in _PARTS:
            values = arrays[f"{layer}.{part}"].ravel()
            body = ",\n  ".join(
                ", ".join(
                    f"{v:.9g}f" if "." in f"{v:.9g}" or "e" in f"{v:.9g}" else f"{v:.9g}.0f"
                    for v in values[at : at + 8]
                )
                for at in range(0, len(values), 8)
            )
            lines.append(f"static const float asym_{layer}_{part}[{len(values)}] = {{\n  {body}}};")
    lines += [
        "static float asym_fast_tanh(float x) {",
        "  const float c = x < -3.0f ? -3.0f : (x > 3.0f ? 3.0f : x);",
        "  return c * (27.0f + c * c) / (27.0f + 9.0f * c * c);",
        "}",
        "static void asym_dense(const float *in, int inputs, const float *kernel,",
        "                       const float *bias, float *out, int outputs) {",
        "  for (int o = 0; o < outputs; o++) {",
        "    float sum = bias[o];",
        "    for (int i = 0; i < inputs; i++) sum += in[i] * kernel[i * outputs + o];",
        "    out[o] = asym_fast_tanh(sum);",
        "  }",
        "}",
        "static void asym_policy(const float *observation, float *action) {",
        f"  float first[{sizes[1]}], second[{sizes[2]}];",
        f"  asym_dense(observation, {sizes[0]}, asym_first_kernel, asym_first_bias, first, "
        f"{sizes[1]});",
        f"  asym_dense(first, {sizes[1]}, asym_second_kernel, asym_second_bias, second, "
        f"{sizes[2]});",
        f"  asym_dense(second, {sizes[2]}, asym_last_kernel, asym_last_bias, action, {sizes[3]});",
        "}",
        "#endif",
    ]
    return "\n".join(lines) + "\n"
