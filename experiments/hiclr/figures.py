"""The figures of HiCLR: the growing views of one clip, and what the chain of them does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import app, metrics, plots
from experiments.hiclr import settings, skeletons, sources, views

_SHOWN_FRAMES = 5
_CLIP = 1
_SCORES = {"probe": "logistic probe", "knn": "5-NN"}
_LOSSES = {
    "info_nce": "contrast of basic",
    "consistency_normal": "normal learns from basic",
    "consistency_strong": "strong learns from normal",
}


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Learning curves, accuracies, losses, gradients by branch; and the views of a clip.

    Args:
      config: The settings.
      outcomes: Outcome by method.
      workdir: The run's folder.
      folder: Where figures go.
    """
    stream = "joint" if config.stream == settings.THREE else config.stream
    figure, grid = plots.new(2, rows=2, width=5.6, height=3.9)
    logs = {m: workdir / f"train_{m}_{stream}" / "metrics.jsonl" for m in outcomes}
    logs = {method: path for method, path in logs.items() if path.exists()}
    suffix = "_ensemble" if config.stream == settings.THREE else ""
    learning_curves(grid[0, 0], logs, outcomes, suffix)
    accuracies(grid[0, 1], outcomes, suffix)
    shown = "hiclr" if "hiclr" in logs else next(iter(logs), None)
    for panel in grid[1]:
        panel.set_visible(shown is not None)
    if shown is not None:
        losses(grid[1, 0], logs[shown], shown)
        gradients(grid[1, 1], logs[shown], shown)
    plots.save(figure, folder / "hiclr.png")
    views_of_a_clip(config, folder / "views.png")


def learning_curves(
    axes: Any, logs: Mapping[str, Path], outcomes: Mapping[str, app.Outcome], suffix: str
) -> None:
    """The probe over the steps, if it was followed; else the loss.

    Args:
      axes: Where to draw.
      logs: metrics.jsonl by method.
      outcomes: Outcome by method.
      suffix: Of the metrics' names.
    """
    followed = {m: metrics.curve(path, "probe") for m, path in logs.items()}
    if any(len(steps) for steps, _ in followed.values()):
        title = "logistic probe while training"
    else:
        followed = {m: metrics.curve(path, "loss") for m, path in logs.items()}
        title = "loss"
    for index, (method, (steps, values)) in enumerate(followed.items()):
        style = "-" if index < len(plots.COLOURS) else "--"
        plots.band(axes, steps, values, method, plots.COLOURS[index % len(plots.COLOURS)], style)
    if "random" in outcomes and title != "loss":
        level = outcomes["random"].metrics[f"probe{suffix}"].mean()
        axes.axhline(level, color="black", linewidth=1, linestyle=":", label="random")
    axes.set(title=title, xlabel="step")
    if axes.has_data():
        axes.legend(fontsize=7, ncols=2)


def accuracies(axes: Any, outcomes: Mapping[str, app.Outcome], suffix: str) -> None:
    """Test accuracy of frozen features by method.

    Args:
      axes: Where to draw.
      outcomes: Outcome by method.
      suffix: Of the metrics' names.
    """
    place = np.arange(len(outcomes))
    names = [n for n in _SCORES if all(n + suffix in o.metrics for o in outcomes.values())]
    for i, name in enumerate(names):
        values = [o.metrics[name + suffix] for o in outcomes.values()]
        errors = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0 for v in values]
        means = [v.mean() for v in values]
        axes.bar(place + 0.4 * (i - 0.5), means, 0.38, yerr=errors, label=_SCORES[name])
    axes.set_xticks(place, list(outcomes), rotation=40, ha="right", fontsize=8)
    axes.margins(y=0.2)
    axes.set(title="test accuracy of frozen features")
    axes.legend(fontsize=8, ncols=2, loc="upper left")


def losses(axes: Any, log: Path, method: str) -> None:
    """The parts of the loss.

    Args:
      axes: Where to draw.
      log: A metrics.jsonl.
      method: Whose.
    """
    for (name, label), colour in zip(_LOSSES.items(), plots.COLOURS, strict=False):
        steps, values = metrics.curve(log, name)
        if len(steps):
            plots.band(axes, steps, values, label, colour)
    axes.set(title=f"{method}: parts of the loss", xlabel="step", ylabel="nats")
    axes.legend(fontsize=8)


def gradients(axes: Any, log: Path, method: str) -> None:
    """Length of the gradient of the loss with respect to the embeddings of each view.

    Args:
      axes: Where to draw.
      log: A metrics.jsonl.
      method: Whose.
    """
    for name, colour in zip(views.NAMES, plots.COLOURS, strict=False):
        steps, values = metrics.curve(log, f"gradient_{name}")
        if len(steps):
            plots.band(axes, steps, values, name, colour)
    axes.set(title=f"{method}: gradient by view", xlabel="step", ylabel="norm")
    axes.set_yscale("log")
    axes.legend(fontsize=8)


def views_of_a_clip(config: Any, path: Path) -> None:
    """A training clip, its key view and its growing views, as stick figures over time.

    Joint positions are drawn, whatever stream the encoder sees.

    Args:
      config: The settings.
      path: Of the picture.
    """
    source = sources.open_source(config)
    clip = source.train.x[_CLIP : _CLIP + 1]
    augmenter = views.Augmenter(config, source.skeleton, "joint")
    keys = jax.random.split(jax.random.key(0))

    @jax.jit
    def make(x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        return augmenter.key_view(keys[0], x), augmenter.growing(keys[1], x, jnp.zeros(()), 3)

    key_view, growing = make(clip)
    named = {"clip": clip, "key": key_view, **dict(zip(views.NAMES, growing, strict=True))}
    figure, grid = plots.new(1, rows=len(named), width=9.0, height=1.7)
    for (name, x), axes in zip(named.items(), grid[:, 0], strict=True):
        stick_figures(axes, np.asarray(x)[0, ..., 0], source.skeleton)
        axes.set_ylabel(name)
    plots.save(figure, path)


def stick_figures(axes: Any, clip: np.ndarray, skeleton: skeletons.Skeleton) -> None:
    """Some frames of a figure, side by side.

    Args:
      axes: Where to draw.
      clip: (3, T, V): x to the right, y up.
      skeleton: Which joints a bone connects.
    """
    frames = np.linspace(0, clip.shape[1] - 1, _SHOWN_FRAMES).round().astype(int)
    # A view whose x is masked is a line.
    apart = 1.2 * max(np.ptp(clip[0]), np.ptp(clip[1]) / 2)
    for place, frame in enumerate(frames):
        x, y = clip[0, frame] + place * apart, clip[1, frame]
        for joint, parent in skeleton.edges:
            axes.plot(x[[joint, parent]], y[[joint, parent]], color=plots.COLOURS[0], linewidth=1)
        axes.plot(x, y, ".", color=plots.COLOURS[1], markersize=3)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
