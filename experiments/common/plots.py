"""One look for all figures, drawn without a display."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import files

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new(columns: int, rows: int = 1, *, width: float = 4.6, height: float = 3.5) -> Any:
    """A figure with a row or a grid of axes.

    Args:
      columns: Axes side by side.
      rows: Axes above each other.
      width: Inches of one of the axes.
      height: Inches of one of the axes.

    Returns:
      The figure and an array of axes, shape (rows, columns).
    """
    import matplotlib
    from matplotlib import rcsetup

    # Without a display, and without touching the caller's (a notebook's) backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "axes.prop_cycle": rcsetup.cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "font.size": 10,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically.

    Args:
      figure: From `new`.
      path: Where.
    """
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    files.write_bytes(path, buffer.getvalue())


def band(
    axes: Any, x: np.ndarray, values: np.ndarray, label: str, colour: str, style: str = "-"
) -> None:
    """A mean over seeds with its standard error as a band.

    Args:
      axes: Where to draw.
      x: Shape (points,).
      values: Shape (points, num_seeds).
      label: Name in the legend.
      colour: Its colour.
      style: Of the line.
    """
    mean = values.mean(axis=1)
    axes.plot(x, mean, style, color=colour, label=label)
    if values.shape[1] > 1:
        error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
