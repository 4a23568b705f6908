"""The figures of equilibrium propagation: the bias of nudges, and what homeostasis changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import app, metrics, plots
from experiments.ep_homeostasis import bias, model

_RECIPROCAL = ("ep", "ep_homeo", "bp")
_COLOURS = dict(zip(("ep", "ep_homeo", "bp", "loop", "loop_homeo"), plots.COLOURS, strict=False))


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Bias over the radius; accuracy, alignment and symmetry over epochs; the angle at the start.

    The smoke preset leaves the bias out, which would take longer than its training.

    Args:
      config: The settings.
      outcomes: Outcome by method.
      workdir: The run's folder.
      folder: Where figures go.
    """
    if config.preset != "smoke":
        figure, (panels,) = plots.new(2, width=5.2, height=4.0)
        for axes, act in zip(panels, reversed(model.ACTIVATIONS), strict=True):
            biases(axes, act)
        plots.save(figure, folder / "bias.png")
    figure, grid = plots.new(2, rows=2, width=5.4, height=3.6)
    training(grid, outcomes, workdir)
    plots.save(figure, folder / "ep_homeostasis.png")


def biases(axes: Any, act: str) -> None:
    """Measured bias of N nudges over their radius (dots), with the slope N (lines).

    Args:
      axes: Where to draw.
      act: The activation.
    """
    found = bias.table(act).relative
    betas = np.array(bias.BETAS)
    for n, values, colour in zip(bias.PHASES, found, plots.COLOURS, strict=False):
        axes.loglog(betas, values, "o", color=colour, label=f"N = {n}")
        axes.loglog(betas, values[0] * (betas / betas[0]) ** n, "--", color=colour, linewidth=1)
    axes.set_xticks(betas, [f"{b:g}" for b in betas])
    axes.minorticks_off()
    axes.set(
        title=f"{act}: bias of the gradient",
        xlabel="radius beta",
        ylabel="relative to the exact derivative",
        ylim=(1e-14, 10),
    )
    axes.legend(fontsize=8, loc="lower right")


def training(grid: Any, outcomes: Mapping[str, app.Outcome], workdir: Path) -> None:
    """Learning curves of those methods that were trained, and the final accuracy over the angle.

    Args:
      grid: Axes (2, 2).
      outcomes: Outcome by method.
      workdir: The run's folder.
    """
    (top_left, top_right), (bottom_left, bottom_right) = grid
    shown = [m for m in outcomes if m in _COLOURS] or list(outcomes)
    colours = dict(zip(shown, plots.COLOURS, strict=False)) | _COLOURS
    alone = len(outcomes) == 1
    reciprocal = [m for m in shown if alone or m in _RECIPROCAL]
    for axes, name, title, methods in (
        (top_left, "accuracy", "test accuracy", reciprocal),
        (top_right, "cos", "errors of EP and BP, first layer", reciprocal),
        (bottom_left, "symmetry", "Jacobian", [m for m in shown if alone or m != "bp"]),
    ):
        for method in methods:
            angle = float(outcomes[method].arrays["angles"][0])
            log = workdir / f"train_{method}_{angle:g}" / "metrics.jsonl"
            measured = name if name != "cos" else _first_cosine(outcomes[method])
            if log.exists() and measured in outcomes[method].metrics:
                steps, values = metrics.curve(log, f"test_{measured}")
                epochs = np.arange(len(steps))
                plots.band(axes, epochs, values, method, colours[method])
        labels = {"cos": "cosine", "symmetry": "share that is symmetric"}
        axes.set(title=title, xlabel="epoch", ylabel=labels.get(name, name))
        if axes.has_data():
            axes.legend(fontsize=8)
    for method in reciprocal:
        arrays = outcomes[method].arrays
        order = np.argsort(arrays["angles"])
        style = "o-" if len(order) == 1 else "-"
        at = arrays["angles"][order], arrays["accuracy"][order]
        plots.band(bottom_right, *at, method, colours[method], style)
        bottom_right.set_xticks(at[0])
    bottom_right.set(
        title="angle of the weights at the start", xlabel="degrees", ylabel="test accuracy"
    )
    bottom_right.legend(fontsize=8)


def _first_cosine(outcome: app.Outcome) -> str:
    return next(name for name in outcome.metrics if name.startswith("cos_"))
