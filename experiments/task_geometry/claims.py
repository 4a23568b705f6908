"""The acceptance of the paper: exact identities, and which nonlinearity takes over which geometry.

The demands were found on tasks with two and three bits, noise 1, width 128 and 30 epochs;
claims look their tasks up by name and say "not measured" where a run has none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import app, report
from experiments.task_geometry import tasks, theory, training

# What the demands were found on; other values are reported.
_CALIBRATED = {
    "scale": 0.0,
    "dim": 0,
    "input_noise": -1.0,
    "num_train": 0,
    "depth": 1,
    "init": "normal",
    "readout": "fixed",
    "readout_weights": "normal",
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "batch_size": 64,
}
_WIDTH, _EPOCHS, _EARLY = 128, 30, 20


def claims(config: Any, outcomes: Mapping[str, app.Outcome]) -> Sequence[report.Claim]:
    """Judge a run.

    Args:
      config: The settings.
      outcomes: Outcome by nonlinearity.

    Returns:
      The claims, in the order of the acceptance items.
    """
    parity = report.golden_parity("task_geometry", config.preset)
    return [parity, *identities(), *_effects(config, outcomes)]


def identities() -> list[report.Claim]:
    """Exact properties of tasks, gradients and measures, in float64.

    Returns:
      The claims.
    """
    found = theory.identities()
    return [
        report.claim(
            "largest |CKA(K_x, K_y) - c| of the closed-form spectrum",
            found.alignment,
            "<=",
            1e-6,
            note="b = 2 to 5, k = 1 and b, 12 alignments, embedded in 100 dimensions",
        ),
        report.claim(
            "largest |CKA(K_x, K_y) - c| of random spectra and kernels", found.drawn, "<=", 1e-6
        ),
        report.claim(
            "gradient by hand against autodiff of (outputs) x mean cross-entropy, all "
            "nonlinearities: largest relative difference",
            found.gradient,
            "<=",
            1e-12,
        ),
        report.claim(
            "change of CKA under rotation and isotropic scaling", found.rotation, "<=", 1e-12
        ),
        report.claim("|parallelism score of factorised cubes - 1|", found.cube, "<=", 1e-12),
    ]


def _effects(config: Any, outcomes: Mapping[str, app.Outcome]) -> list[report.Claim]:
    cells = tasks.list_cells(config) if config.task == "orthogonal" else ()
    calibrated = (
        config.epochs == _EPOCHS
        and _WIDTH in config.widths
        and all(getattr(config, name) == value for name, value in _CALIBRATED.items())
    )
    width = config.widths.index(_WIDTH) if _WIDTH in config.widths else 0
    epochs = list(training.snapshot_epochs(config.epochs))

    def gap(
        demand: tuple[str, str],
        more: str,
        less: str,
        name: str,
        chosen: tuple[str, Callable[[float], bool]],
        relation: str,
        threshold: float,
        *,
        least: bool = False,
        epoch: int = 0,
    ) -> report.Claim:
        """By how much one nonlinearity exceeds another, in the mean or the least over tasks."""
        where, what = demand
        statement = f"{where}: {what}"
        problem, dials = chosen
        numbers = [
            i
            for i, cell in enumerate(cells)
            if cell.problem.startswith(problem) and dials(cell.separability)
        ]
        if not numbers:
            return report.not_measured(statement, "this run has no such task")
        if not {more, less} <= set(outcomes):
            return report.not_measured(statement, "needs --compare")
        if epoch and epoch not in epochs:
            return report.not_measured(statement, f"nothing was kept after {epoch} epochs")

        def of(method: str) -> np.ndarray:
            arrays = outcomes[method].arrays
            if epoch:
                kept = arrays[f"curve/{name}"][:, epochs.index(epoch)]
                return kept[:, numbers, width]
            return arrays[name][:, numbers, width]

        values = of(more) - of(less)
        note = f"after {epoch} epochs" if epoch else ""
        if least:
            note = f"least of {values.size} pairs of networks"
            values = values.min()
        else:
            values = values.mean(axis=1)
        if calibrated:
            return report.claim(statement, values, relation, threshold, note=note)
        return report.report_only(statement, values, note=note)

    def exactly(value: float) -> Callable[[float], bool]:
        return lambda dial: dial == value

    def aligned(dial: float) -> bool:
        return dial > 0

    tanh_above = "target alignment of tanh minus ReLU"
    half = "b=2 k=1", exactly(0.5)
    judged = [
        gap(
            ("b=2, k=1, c=.289", tanh_above),
            *("tanh", "relu", "target_alignment", half, ">=", 0.2),
        ),
        gap(
            ("b=2, k=1, c=.289", "input alignment of ReLU minus tanh"),
            *("relu", "tanh", "input_alignment", half, ">=", 0.2),
        ),
    ]
    for problem in ("b=3 k=1", "b=3 k=3"):
        where = f"{problem.replace(' ', ', ')}, c > 0"
        chosen = problem, aligned
        judged += [
            gap(
                (where, tanh_above),
                *("tanh", "relu", "target_alignment", chosen, ">=", 0.08),
                least=True,
            ),
            gap(
                (where, "parallelism of tanh minus ReLU"),
                *("tanh", "relu", "parallelism", chosen, ">=", 0.15),
                least=True,
            ),
            gap(
                (where, "dimension of ReLU minus tanh"),
                *("relu", "tanh", "dimension", chosen, ">", 0.0),
                least=True,
            ),
        ]
    judged += [
        gap(
            (f"{problem.replace(' ', ', ')}, c = 0", tanh_above),
            *("tanh", "relu", "target_alignment", (problem, exactly(0)), "<=", 0.05),
        )
        for problem in ("b=2 k=1", "b=3 k=1", "b=3 k=3")
    ]
    third = "b=3 k=1", exactly(0.5)
    for what, more, less, threshold in (
        ("ReLU clipped at 1 minus ReLU", "relu_ub1", "relu", 0.1),
        ("ReLU clipped at 2 minus ReLU", "relu_ub2", "relu", 0.0),
        ("ReLU clipped at 1 minus clipped at 2", "relu_ub1", "relu_ub2", 0.0),
    ):
        judged.append(
            gap(
                ("b=3, k=1, c=.189", f"target alignment of {what}"),
                *(more, less, "target_alignment", third, ">=" if threshold else ">", threshold),
                epoch=_EARLY,
            )
        )
    for what, more, less, name in (
        ("CCGP of tanh minus ReLU", "tanh", "relu", "ccgp"),
        ("shattering dimension of ReLU minus tanh", "relu", "tanh", "shattering"),
    ):
        judged.append(
            gap(("all tasks with c > 0", what), more, less, name, ("", aligned), ">", 0.0)
        )
    return judged
