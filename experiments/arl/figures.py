"""The figure of ARL: the theory, what each part earns, and where the dependence goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arl import methods, theory, training
from experiments.common import app, plots

_PARTS = ("accuracy", "accuracy_audio", "accuracy_visual")
_LABELS = ("both", "audio alone", "visual alone")
_SHOWN = ("joint", "arl")


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Error over the weight, accuracies, dependence against variance, and strengths.

    Args:
      config: The settings.
      outcomes: Outcome by method.
      workdir: The run's folder.
      folder: Where figures go.
    """
    figure, grid = plots.new(2, rows=2, width=5.6, height=3.9)
    (top_left, top_right), (bottom_left, bottom_right) = grid
    mixture_errors(top_left)
    accuracies(top_right, outcomes)
    fused = [m for m in outcomes if not methods.is_unimodal(m)]
    shown = [m for m in _SHOWN if m in fused] or fused[:1]
    for panel in (bottom_left, bottom_right):
        panel.set_visible(bool(shown))
    if shown:
        ratios(bottom_left, {m: outcomes[m] for m in shown})
        strengths(bottom_right, outcomes[shown[-1]], shown[-1])
    plots.save(figure, folder / "arl.png")


def mixture_errors(axes: Any) -> None:
    """Measured error of each mixture; a dot where theory puts the least.

    Args:
      axes: Where to draw.
    """
    found = theory.mixtures()
    for i, (first, second) in enumerate(found.var):
        label = f"variances {first:g}, {second:g}"
        axes.plot(found.weights, found.errors[0, i], color=plots.COLOURS[i], label=label)
        axes.plot(found.optimum[i], found.least[i], "o", color=plots.COLOURS[i])
    axes.axvline(0.5, color="black", linewidth=1, linestyle=":")
    axes.set(
        title="mixture of two predictions", xlabel="weight of the first", ylabel="squared error"
    )
    axes.set(ylim=(0, 3.2))
    axes.legend(fontsize=8, loc="upper center", ncols=2)


def accuracies(axes: Any, outcomes: Mapping[str, app.Outcome]) -> None:
    """Test accuracy of each method, fused and of each modality alone.

    Args:
      axes: Where to draw.
      outcomes: Outcome by method.
    """
    names = list(outcomes)
    place = np.arange(len(names))
    for i, (name, label) in enumerate(zip(_PARTS, _LABELS, strict=True)):
        values = [_values(outcomes[m], m, name) for m in names]
        errors = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0 for v in values]
        means = [v.mean() for v in values]
        axes.bar(place + 0.27 * (i - 1), means, 0.25, yerr=errors, label=label)
    axes.set_xticks(place, names, rotation=40, ha="right", fontsize=8)
    axes.set(title="test accuracy", ylim=(0, 1.15))
    axes.legend(fontsize=8, ncols=3, loc="upper center")


def _values(outcome: app.Outcome, method: str, name: str) -> np.ndarray:
    """Accuracies by seed; a method of one modality has that modality's alone."""
    if methods.is_unimodal(method):
        own = _PARTS[1 + methods.RECIPES[method].only]
        name = "accuracy" if name == own else ""
    return outcome.metrics.get(name, np.array([np.nan]))


def ratios(axes: Any, outcomes: Mapping[str, app.Outcome]) -> None:
    """Dependence on audio over that on the picture (solid), against inverse variances (dashed).

    Args:
      axes: Where to draw.
      outcomes: Outcome by method.
    """
    for (method, outcome), colour in zip(outcomes.items(), plots.COLOURS, strict=False):
        for name, style, symbol in (
            ("log_dependence", "-", "d"),
            ("log_inverse_variance", "--", "q"),
        ):
            epochs, values = curve(outcome, name)
            plots.band(axes, epochs, values, f"{method}: {symbol}", colour, style)
    axes.axhline(0, color="black", linewidth=1, linestyle=":")
    axes.margins(y=0.25)
    axes.set(
        title="dependence (d) and inverse variance (q)",
        xlabel="epoch",
        ylabel="log of audio / visual",
    )
    axes.legend(fontsize=8, ncols=2)


def strengths(axes: Any, outcome: app.Outcome, method: str) -> None:
    """The strengths k that scaled the gradients.

    Args:
      axes: Where to draw.
      outcome: A method's outcome.
      method: Its name.
    """
    for name, label, colour in zip(
        ("k_audio", "k_visual"), ("audio", "visual"), plots.COLOURS[2:], strict=False
    ):
        plots.band(axes, *curve(outcome, name), label, colour)
    axes.set(
        title=f"{method}: strengths k", xlabel="epoch", ylabel="k; gradients are scaled by 1 + k"
    )
    axes.legend(fontsize=8)


def curve(outcome: app.Outcome, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One curve over epochs.

    Args:
      outcome: A method's outcome.
      name: One of `training.CURVES`.

    Returns:
      Epochs from 1 (epochs,) and values (epochs, num_seeds).
    """
    values = outcome.arrays["curves"][:, :, training.CURVES.index(name)].T
    return np.arange(1, len(values) + 1), values
