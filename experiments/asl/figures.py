"""The figure of ASL: what the filter does to retrieval, and why it can."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import app, metrics, plots

_SHOWN = ("asl", "metric")


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Precision and recall, norm ratios, and training curves.

    Args:
      config: The settings.
      outcomes: Outcome by method.
      workdir: The run's folder.
      folder: Where figures go.
    """
    shown = [m for m in _SHOWN if m in outcomes] or list(outcomes)[:1]
    figure, grid = plots.new(2, rows=2)
    axes = grid.ravel()
    colours = dict(zip(shown, plots.COLOURS, strict=False))
    precision_recall(axes[0], {m: outcomes[m] for m in shown}, colours)
    for method, panel in zip(shown, axes[1:3], strict=False):
        norm_ratios(panel, outcomes[method], f"{method}: length of query / reference")
    axes[2].set_visible(len(shown) == 2)
    for method in shown:
        trained = workdir / f"train_{method}" / "metrics.jsonl"
        if trained.exists():
            steps, values = metrics.curve(trained, "cross_entropy")
            plots.band(axes[-1], steps, values, method, colours[method])
    axes[-1].set(title="training", xlabel="step", ylabel="cross entropy")
    if axes[-1].has_data():
        axes[-1].legend()
    plots.save(figure, folder / "asl.png")


def precision_recall(
    axes: Any, outcomes: Mapping[str, app.Outcome], colours: Mapping[str, str]
) -> None:
    """Interpolated precision over recall, by cosine (dashed) and by the method's own rule.

    Args:
      axes: Where to draw.
      outcomes: Outcome by method.
      colours: Colour by method.
    """
    for method, outcome in outcomes.items():
        filtered = not np.array_equal(
            outcome.metrics["mu_ap"], outcome.metrics["mu_ap_cosine"], equal_nan=True
        )
        for name, style, label in (
            ("cosine", "--", f"{method}, cosine"),
            ("rule", "-", f"{method}, with its filter"),
        ):
            if name == "rule" and not filtered:
                continue
            recall = np.linspace(0, 1, 101)
            precision = np.stack(
                [
                    _precision_at(
                        recall,
                        outcome.arrays[f"recall_{name}/{seed}"],
                        outcome.arrays[f"precision_{name}/{seed}"],
                    )
                    for seed in range(len(outcome.metrics["mu_ap"]))
                ],
                axis=1,
            )
            plots.band(axes, recall, precision, label, colours[method], style)
    axes.set(title="copies against reversed hard negatives", xlabel="recall", ylabel="precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8)


def _precision_at(wanted: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Best precision at each recall or beyond it; 0 where that recall is never reached."""
    reached = recall[None, :] >= wanted[:, None]
    return np.max(np.where(reached, precision[None, :], 0.0), axis=1, initial=0.0)


def norm_ratios(axes: Any, outcome: app.Outcome, title: str) -> None:
    """Norm ratios of copies and of reversed hard negatives; the filter rejects above 1.

    Args:
      axes: Where to draw.
      outcome: A method's outcome.
      title: Of the panel.
    """
    seeds = range(len(outcome.metrics["mu_ap"]))
    bins = np.exp2(np.linspace(-1.5, 1.5, 37))
    for name, label in (("copies", "copies"), ("reversed", "reversed hard negatives")):
        values = np.concatenate([outcome.arrays[f"ratio_{name}/{seed}"] for seed in seeds])
        if len(values):
            axes.hist(np.clip(values, bins[0], bins[-1]), bins, alpha=0.6, label=label)
    axes.margins(y=0.35)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(title=title, xlabel="norm ratio", ylabel="pairs")
    axes.legend(fontsize=8)
