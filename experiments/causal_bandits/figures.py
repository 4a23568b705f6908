"""The figure of CSL-UCB: regret, optimal actions, what the graphs take, and noticing changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.causal_bandits import bandit, claims, csl, identification, probes
from experiments.causal_bandits.settings import METHODS
from experiments.common import app, plots

_PLAYED = ("csl_ucb", "vanilla_ucb", "linsem_ts", "golem_mab", "notears_greedy", "csl_symmetric")
_COLOURS = dict(zip(_PLAYED, plots.COLOURS, strict=False))
# Ablations take the colour of what they are not drawn with.
_COLOURS |= dict(zip([m for m in METHODS if m not in _PLAYED], plots.COLOURS[1:], strict=False))


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """All panels.

    Args:
      config: The settings.
      outcomes: Outcome by method.
      workdir: The run's folder.
      folder: Where figures go.
    """
    figure, axes = plots.new(4, rows=2)
    rivals = {m: o for m, o in outcomes.items() if m in _PLAYED} or outcomes
    curves(axes[0, 0], rivals, "regret", "cumulative regret, stationary")
    curves(axes[0, 1], rivals, "optimal", "share of optimal actions, stationary")
    learnt(axes[0, 2], config, outcomes)
    identified(axes[0, 3], config, outcomes, {"": ""}, "samples")
    looking = {m: o for m, o in outcomes.items() if m not in ("golem_mab", "notears_greedy")}
    if config.nonstationary:
        curves(axes[1, 0], rivals, "regret_changing", "cumulative regret, changing graph")
        curves(axes[1, 1], looking, "optimal_changing", "share of optimal actions, changing graph")
        for panel in axes[1, :2]:
            for time in config.change_times:
                panel.axvline(time, color="black", linewidth=0.8, linestyle=":")
        ways = {"_changing": "", "_told": ", told the columns"}
        identified(axes[1, 3], config, outcomes, ways, "new samples after the change")
    noticed(axes[1, 2], config, outcomes)
    for panel in axes.ravel():
        panel.set_visible(panel.has_data())
    plots.save(figure, folder / "causal_bandits.png")


def curves(axes: Any, outcomes: Mapping[str, app.Outcome], name: str, title: str) -> None:
    """Means over instances with their standard errors, against steps.

    Args:
      axes: Where to draw.
      outcomes: Outcome by method.
      name: Of the curves.
      title: Of the panel.
    """
    for method, outcome in outcomes.items():
        if name in outcome.arrays:
            values = outcome.arrays[name]
            steps = bandit.BIN * (1 + np.arange(values.shape[1]))
            style = "-" if method in _PLAYED else "--"
            plots.band(axes, steps, values.T, method, _COLOURS[method], style)
    axes.set(title=title, xlabel="step")
    if name.startswith("optimal"):
        # Room for the legend.
        axes.set(ylim=(-0.02, 1.5), yticks=np.linspace(0, 1, 6))
    if axes.has_data():
        axes.legend(fontsize=7, ncols=2, loc="upper left")


def learnt(axes: Any, config: Any, outcomes: Mapping[str, app.Outcome]) -> None:
    """Missing (solid) and superfluous (dashed) edges against samples.

    Args:
      axes: Where to draw.
      config: The settings.
      outcomes: Outcome by method.
    """
    for method, outcome in outcomes.items():
        if "errors_missing" in outcome.arrays:
            sizes, colour = np.asarray(config.sample_sizes), _COLOURS[method]
            missing, superfluous = (
                outcome.arrays[f"errors_{name}"].T for name in ("missing", "superfluous")
            )
            plots.band(axes, sizes, missing, f"{method}: missing", colour)
            plots.band(axes, sizes, superfluous, f"{method}: superfluous", colour, "--")
    axes.set(title="errors of the learnt graphs", xlabel="samples", ylabel="share of edges")
    if axes.has_data():
        _scale(axes, config)
        axes.legend(fontsize=6, ncols=2, loc="upper right", bbox_to_anchor=(1, 0.72))


def identified(
    axes: Any,
    config: Any,
    outcomes: Mapping[str, app.Outcome],
    ways: Mapping[str, str],
    label: str,
) -> None:
    """Share of instances that have had a graph without a missing edge, against samples.

    Args:
      axes: Where to draw.
      config: The settings.
      outcomes: Outcome by method.
      ways: Suffix of the arrays to what it adds to the method's name; the second is dotted.
      label: Of the samples.
    """
    for method, outcome in outcomes.items():
        for style, (suffix, name) in zip(("-", ":"), ways.items(), strict=False):
            if f"errors_missing{suffix}" in outcome.arrays:
                reached = claims.identified(outcome.arrays, suffix)
                count, enough = identification.samples_until(reached, config.sample_sizes)
                share = [np.mean(enough & (count <= size)) for size in config.sample_sizes]
                colour = _COLOURS[method]
                axes.plot(config.sample_sizes, share, style, color=colour, label=method + name)
    setting = "stationary" if "" in ways else "changed graph"
    axes.set(title=f"no edge was missing, {setting}", xlabel=label, ylabel="share of systems")
    if axes.has_data():
        _scale(axes, config)
        # Room for the legend.
        axes.set(ylim=(-0.02, 1.5), yticks=np.linspace(0, 1, 6))
        axes.legend(fontsize=7, ncols=2, loc="upper left")


def _scale(axes: Any, config: Any) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(config.sample_sizes, [str(size) for size in config.sample_sizes])


def noticed(axes: Any, config: Any, outcomes: Mapping[str, app.Outcome]) -> None:
    """Share of changes that were declared, against what came after them.

    Args:
      axes: Where to draw.
      config: The settings.
      outcomes: Outcome by method.
    """
    found = probes.changes()
    counts = np.arange(csl.WINDOW, probes.RELEVANT + 1)
    share = [(found.changed <= count).mean() for count in counts]
    axes.plot(counts, share, color="black", label="redrawn column, own samples (N = 5)")
    false = [(found.unchanged <= count).mean() for count in counts]
    axes.plot(counts, false, color="black", linestyle=":", label="column without change (N = 5)")
    for method, outcome in outcomes.items():
        if "detection_delay" in outcome.arrays and outcome.arrays["detection_declared"].any():
            delay = np.where(
                outcome.arrays["detection_noticed"], outcome.arrays["detection_delay"], np.inf
            ).ravel()
            steps = np.arange(config.horizon - config.change_times[-1])
            share = [(delay <= step).mean() for step in steps]
            style = "-" if method in _PLAYED else "--"
            axes.plot(steps, share, style, color=_COLOURS[method], label=f"{method}, steps")
    axes.set(
        title="changes noticed", xlabel="samples or steps after the change", ylim=(-0.02, 1.02)
    )
    axes.legend(fontsize=7)
