"""The figures of learning to fly: curves, flights, ablations, and an animated clip."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import app, files, plots, terminal
from experiments.learning_to_fly import flight
from experiments.learning_to_fly.settings import BPTT

_SHOWN = ("td3", "symmetric", "bptt")
_PAPER_SCHEDULE = 300_000
# The clip: hovering from a tilted start, and a lap of the middle figure-eight.
_HOVER_SECONDS = 2.5
_LAP = "eight_5.5"
_ARM = 0.09


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Learning curves, hovering in space, the figure-eight, final lengths; and the clip.

    Args:
      config: The settings.
      outcomes: Outcome by method.
      workdir: The run's folder.
      folder: Where figures go.
    """
    figure, grid = plots.new(2, rows=2, width=5.4, height=3.9)
    (top_left, top_right), (bottom_left, bottom_right) = grid
    curves(top_left, outcomes)
    bars(top_right, outcomes)
    best = max(outcomes, key=lambda m: float(outcomes[m].metrics["length"].mean()))
    bottom_left.remove()
    space = figure.add_subplot(2, 2, 3, projection="3d")
    hovering(space, outcomes[best], best)
    eights = [name for name in outcomes[best].arrays if name.startswith("eight_")]
    bottom_right.set_visible(bool(eights))
    if eights:
        tracking(bottom_right, outcomes[best], best, eights)
    plots.save(figure, folder / "learning_to_fly.png")
    if config.clip_frames:
        clip(outcomes[best], folder / "flight.gif", frames=config.clip_frames)


def curves(axes: Any, outcomes: Mapping[str, app.Outcome]) -> None:
    """Mean episode length over environment steps.

    Args:
      axes: Where to draw.
      outcomes: Outcome by method.
    """
    shown = [m for m in _SHOWN if m in outcomes] or list(outcomes)
    for method, colour in zip(shown, plots.COLOURS, strict=False):
        arrays = outcomes[method].arrays
        plots.band(axes, arrays["curve_steps"] / 1e3, arrays["curve_length"], method, colour)
    longest = max(outcomes[m].arrays["curve_steps"][-1] for m in shown)
    if BPTT in shown and longest > 2 * _PAPER_SCHEDULE:
        axes.set_xscale("symlog", linthresh=10)
    axes.set(
        title="episode length, full environment",
        xlabel="environment steps, thousands",
        ylabel="steps until failure, of 500",
        ylim=(0, 510),
    )
    axes.legend(fontsize=8)


def bars(axes: Any, outcomes: Mapping[str, app.Outcome]) -> None:
    """Episode length, and the share of episodes that settle, of every method.

    Args:
      axes: Where to draw.
      outcomes: Outcome by method.
    """
    names = list(outcomes)
    place = np.arange(len(names))
    for i, (name, scale, label) in enumerate(
        (("length", flight.EPISODE, "episode length / 500"), ("settled", 1, "settled within 0.2 m"))
    ):
        values = [outcomes[m].metrics[name] / scale for m in names]
        errors = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0 for v in values]
        means = [v.mean() for v in values]
        axes.bar(place + 0.4 * (i - 0.5), means, 0.38, yerr=errors, label=label)
    axes.set_xticks(place, names, rotation=35, ha="right", fontsize=8)
    axes.set(title="at the end of training", ylim=(0, 1.2))
    axes.legend(fontsize=8, ncols=2, loc="upper center")


def hovering(axes: Any, outcome: app.Outcome, method: str) -> None:
    """Paths of a few episodes in space.

    Args:
      axes: Where to draw, in three dimensions.
      outcome: A method's outcome.
      method: Its name.
    """
    paths = outcome.arrays["hovering"]
    for i in range(paths.shape[1]):
        x, y, z = paths[:, i, :3].T
        colour = plots.COLOURS[i % len(plots.COLOURS)]
        axes.plot(x, y, z, linewidth=0.9, color=colour)
        axes.scatter(x[0], y[0], z[0], s=10, color=colour)
    axes.scatter(0, 0, 0, marker="x", s=40, color="black")
    axes.set(
        title=f"{method}: hovering (dots: starts)", xlabel="x, m", ylabel="y, m", zlabel="z, m"
    )
    axes.tick_params(labelsize=7)


def tracking(axes: Any, outcome: app.Outcome, method: str, eights: list[str]) -> None:
    """The last lap of each figure-eight from above.

    Args:
      axes: Where to draw.
      outcome: A method's outcome.
      method: Its name.
      eights: Names of its laps.
    """
    for name, colour in zip(eights, plots.COLOURS, strict=False):
        period = float(name.removeprefix("eight_"))
        lap = outcome.arrays[name][-round(period / flight.DT) :]
        axes.plot(lap[:, 0], lap[:, 1], color=colour, linewidth=1.2, label=f"{period:g} s")
    axes.plot(lap[:, 3], lap[:, 4], "k:", linewidth=1, label="figure")
    axes.set(
        title=f"{method}: figure-eight by a hovering policy",
        xlabel="x, m",
        ylabel="y, m",
        xlim=(-1.6, 1.6),
        ylim=(-1.0, 1.1),
    )
    axes.legend(fontsize=8, ncols=4, loc="upper center")


def clip(outcome: app.Outcome, path: Path, *, frames: int) -> None:
    """An animated picture: a vehicle catches itself, then flies a figure-eight.

    Args:
      outcome: A method's outcome.
      path: The GIF.
      frames: How many.
    """
    poses = outcome.arrays["hovering"][: round(_HOVER_SECONDS / flight.DT), 0]
    hover = np.linspace(0, len(poses) - 1, frames - frames // 2).astype(int)
    scenes: list[Any] = [(poses[: at + 1], None) for at in hover]
    if _LAP in outcome.arrays:
        lap = outcome.arrays[_LAP][-550:]
        scenes += [
            (lap[: at + 1], lap) for at in np.linspace(0, len(lap) - 1, frames // 2).astype(int)
        ]
    pictures = []
    with terminal.progress("drawing the clip", len(scenes), unit="frame", delay=5) as bar:
        for trail, whole in scenes:
            pictures.append(_frame(trail, whole))
            bar.update(1)
    palette = pictures[0].quantize(48)
    reduced = [picture.quantize(palette=palette) for picture in pictures]
    buffer = io.BytesIO()
    reduced[0].save(
        buffer, "GIF", save_all=True, append_images=reduced[1:], duration=60, loop=0, optimize=True
    )
    files.write_bytes(path, buffer.getvalue())


def _frame(trail: np.ndarray, whole: np.ndarray | None) -> Any:
    """One picture of the clip."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(3.6, 3.0), dpi=80)
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0, 0, 1, 0.95), projection="3d")
    axes.plot(*trail[:, :3].T, color=plots.COLOURS[5], linewidth=1)
    place = trail[-1, :3]
    if whole is None:
        limit, title = 0.3, f"hovering, {len(trail) * flight.DT:.1f} s"
        for arm in _arms(trail[-1, 3:]):
            axes.plot(*(place[:, None] + arm), color=plots.COLOURS[1], linewidth=2.5)
        axes.scatter(0.0, 0.0, 0.0, marker="x", color="black")
    else:
        limit, title = 1.1, f"figure-eight in 5.5 s, {len(trail) * flight.DT:.1f} s"
        axes.plot(*whole[:, 3:].T, ":", color="black", linewidth=0.8)
        x, y, z = place
        axes.scatter(x, y, z, s=30, color=plots.COLOURS[1])
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), zlim=(-limit, limit))
    axes.tick_params(labelsize=5, pad=-3)
    figure.suptitle(title, fontsize=9, y=0.99)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _arms(quaternion: np.ndarray) -> list[np.ndarray]:
    """Ends of the two diagonals (3, 2) of a vehicle, three times as large as it is."""
    w, x, y, z = quaternion
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z)],
            [2 * (x * z - w * y), 2 * (y * z + w * x)],
        ]
    )
    ends = np.array([[[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) * _ARM
    return [rotation @ pair for pair in ends]
