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
    figure, grid = plots.new(2 + len(shown))
    axes = grid[0]
    colours = dict(zip(shown, plots.COLOURS, strict=False))
    precision_recall(axes[0], {m: outcomes[m] for m in shown}, colours)
    for method, panel in zip(shown, axes[1:], strict=False):
        norm_ratios(panel, outcomes[method], f"{method}: length of query / reference")
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
    """Precision over recall of each method, by cosine (dashed) and by its own rule.

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
            for seed in range(len(outcome.metrics["mu_ap"])):
                axes.plot(
                    outcome.arrays[f"recall_{name}/{seed}"],
                    outcome.arrays[f"precision_{name}/{seed}"],
                    style,
                    color=colours[method],
                    alpha=0.8,
                    linewidth=1.2,
                    label=label if seed == 0 else None,
                )
    axes.set(title="copies against reversed hard negatives", xlabel="recall", ylabel="precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8)


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
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(title=title, xlabel="norm ratio", ylabel="pairs")
    axes.legend(fontsize=8)
