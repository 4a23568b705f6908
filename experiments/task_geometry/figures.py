"""The figures: geometry against separability, the plane of the two kernels, and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from asym import similarity
from experiments.common import app, plots
from experiments.task_geometry import tasks, theory, training

LABELS = {
    "tanh": "tanh",
    "relu_ub1": "ReLU clipped at 1",
    "relu_ub2": "ReLU clipped at 2",
    "relu": "ReLU",
}
MEASURES = {
    "target_alignment": "alignment with targets",
    "input_alignment": "alignment with inputs",
    "parallelism": "parallelism",
    "dimension": "dimension",
    "ccgp": "CCGP",
    "shattering": "shattering dimension",
}


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Draws what the run has tasks for.

    Args:
      config: The settings.
      outcomes: Outcome by nonlinearity.
      workdir: The run's folder.
      folder: Where figures go.
    """
    cells = _cells(config)
    shown = {m: outcomes[m] for m in LABELS if m in outcomes} or dict(list(outcomes.items())[:4])
    if len({cell.separability for cell in cells}) > 1:
        separability(cells, shown, folder / "separability.png")
    if config.task in ("orthogonal", "kernel"):
        plane(cells, shown, folder / "plane.png")
    if len(config.widths) > 1:
        widths(config, cells, shown, folder / "widths.png")
    mechanism(config, cells, outcomes, folder / "mechanism.png")


def _cells(config: Any) -> Sequence[tasks.Cell]:
    if config.task in ("digits", "cifar10"):
        return [tasks.Cell(config.task, 1.0, 10, 2)]
    return tasks.list_cells(config)


def _problems(cells: Sequence[tasks.Cell]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, cell in enumerate(cells):
        found.setdefault(cell.problem, []).append(number)
    return found


def separability(
    cells: Sequence[tasks.Cell], outcomes: Mapping[str, app.Outcome], path: Path, width: int = -1
) -> None:
    """Each measure over the separability, a row a problem; bands are standard errors over seeds.

    Args:
      cells: The tasks.
      outcomes: Outcome by nonlinearity.
      path: Where.
      width: Number of the width, the last one by default.
    """
    problems = _problems(cells)
    figure, grid = plots.new(len(MEASURES), len(problems), width=3.0, height=2.7)
    for row, (problem, numbers) in zip(grid, problems.items(), strict=True):
        dials = np.array([cells[i].separability for i in numbers])
        for axes, (name, title) in zip(row, MEASURES.items(), strict=True):
            for (method, outcome), colour in zip(outcomes.items(), plots.COLOURS, strict=False):
                values = outcome.arrays[name][:, numbers, width].T
                plots.band(axes, dials, values, LABELS.get(method, method), colour, ".-")
            axes.set(title=f"{problem}: {title}", xlabel="separability")
            axes.title.set_fontsize(9)
            if name not in ("dimension", "parallelism"):
                axes.set_ylim(
                    min(0.4 if name in ("ccgp", "shattering") else 0, *axes.get_ylim()), 1.03
                )
    grid[0, 0].legend(fontsize=7)
    plots.save(figure, path)


def plane(
    cells: Sequence[tasks.Cell], outcomes: Mapping[str, app.Outcome], path: Path, width: int = -1
) -> None:
    """Where hidden kernels lie between the kernels of the inputs and of the targets.

    Args:
      cells: The tasks.
      outcomes: Outcome by nonlinearity.
      path: Where.
      width: Number of the width, the last one by default.
    """
    problems = _problems(cells)
    figure, grid = plots.new(len(problems), width=4.2, height=4.6)
    angle = np.linspace(0, np.pi / 2, 100)
    for axes, (problem, numbers) in zip(grid[0], problems.items(), strict=True):
        axes.plot(np.cos(angle), np.sin(angle), color="black", linewidth=1)
        for (method, outcome), colour in zip(outcomes.items(), plots.COLOURS, strict=False):
            arrays = outcome.arrays
            for number in numbers:
                # Inputs that are the targets leave no plane.
                c = np.minimum(arrays["alignment"][:, number], 0.999)
                each = _coordinates(arrays, "", number, width, c)
                mean = _coordinates(arrays, "mean/", number, width, c.mean())
                axes.plot(*each.T, ".", color=colour, markersize=3, alpha=0.6)
                axes.plot(
                    *mean.T,
                    "o",
                    color=colour,
                    markersize=4 + 6 * cells[number].separability,
                    label=LABELS.get(method, method) if number == numbers[-1] else None,
                )
        axes.set(title=problem, xlabel="towards the inputs", ylabel="towards the targets")
        axes.set(xlim=(-0.1, 1.08), ylim=(-0.1, 1.08), aspect="equal")
    grid[0, 0].legend(fontsize=7, loc="lower left")
    plots.save(figure, path)


def _coordinates(
    arrays: Mapping[str, np.ndarray], kind: str, number: int, width: int, c: np.ndarray
) -> np.ndarray:
    pair = [arrays[f"{kind}{name}"][..., number, width] for name in _ALIGNMENTS]
    found = similarity.alignment_coordinates(
        input_alignment=jnp.asarray(pair[0]),
        target_alignment=jnp.asarray(pair[1]),
        alignment=jnp.asarray(c),
    )
    return np.atleast_2d(np.asarray(found))


_ALIGNMENTS = ("input_alignment", "target_alignment")


def widths(
    config: Any, cells: Sequence[tasks.Cell], outcomes: Mapping[str, app.Outcome], path: Path
) -> None:
    """Alignments over the width of the hidden layer, a row a nonlinearity.

    Args:
      config: The settings.
      cells: The tasks.
      outcomes: Outcome by nonlinearity.
      path: Where.
    """
    chosen = ("target_alignment", "input_alignment", "parallelism", "shattering")
    figure, grid = plots.new(len(chosen), len(outcomes), width=3.4, height=2.7)
    problem, numbers = list(_problems(cells).items())[-1]
    picked = numbers if len(numbers) <= 4 else [numbers[i] for i in (0, len(numbers) // 2, -1)]
    for row, (method, outcome) in zip(grid, outcomes.items(), strict=True):
        for axes, name in zip(row, chosen, strict=True):
            for number, colour in zip(picked, plots.COLOURS, strict=False):
                values = outcome.arrays[name][:, number].T
                label = f"separability {cells[number].separability:.2g}"
                plots.band(axes, np.array(config.widths), values, label, colour, ".-")
            axes.set_xscale("log", base=2)
            axes.set(title=f"{LABELS.get(method, method)}: {MEASURES[name]}", xlabel="width")
            axes.title.set_fontsize(9)
            axes.set_ylim(
                -0.1 if name == "parallelism" else 0.4 if name == "shattering" else 0, 1.03
            )
    grid[0, 0].legend(fontsize=7, title=problem, title_fontsize=7)
    plots.save(figure, path)


def mechanism(
    config: Any, cells: Sequence[tasks.Cell], outcomes: Mapping[str, app.Outcome], path: Path
) -> None:
    """The first push on units, target alignment while learning, and all nonlinearities.

    Args:
      config: The settings.
      cells: The tasks.
      outcomes: Outcome by nonlinearity.
      path: Where.
    """
    figure, grid = plots.new(4, width=4.0, height=3.9)
    for axes, name in zip(grid[0], ("tanh", "relu"), strict=False):
        push(axes, name)
    curves(grid[0, 2], config, cells, outcomes)
    layers = next(iter(outcomes.values())).arrays["layer/target_alignment"].shape[-1]
    if layers > 1:
        by_layer(grid[0, 3], cells, outcomes)
    else:
        scatter(grid[0, 3], cells, outcomes)
    plots.save(figure, path)


def push(axes: Any, name: str) -> None:
    """Where hidden units are pushed first, in the plane of the task's two axes.

    Args:
      axes: Where to draw.
      name: The nonlinearity.
    """
    flow = theory.first_push(name)
    axes.quiver(*flow.weights.T, *flow.push.T, color="0.45", angles="xy", width=0.005)
    for label, colour in zip((0, 1), plots.COLOURS, strict=False):
        chosen = flow.conditions[flow.labels == label]
        axes.plot(*chosen.T, "o", color=colour, markersize=9, label=f"class {label}")
    axes.set(title=f"{LABELS[name]}: first push on a unit", xlabel="along the intra-class axis")
    axes.set(ylabel="along the inter-class axis", xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
    axes.legend(fontsize=7, loc="lower right")


def curves(
    axes: Any, config: Any, cells: Sequence[tasks.Cell], outcomes: Mapping[str, app.Outcome]
) -> None:
    """Target alignment over epochs, in the middle task of the last problem.

    Args:
      axes: Where to draw.
      config: The settings.
      cells: The tasks.
      outcomes: Outcome by nonlinearity.
    """
    problems = _problems(cells)
    problem = "b=3 k=1" if "b=3 k=1" in problems else list(problems)[-1]
    numbers = problems[problem]
    number = numbers[len(numbers) // 2]
    epochs = training.snapshot_epochs(config.epochs)
    shown = [m for m in LABELS if m in outcomes] or list(outcomes)[:4]
    for method, colour in zip(shown, plots.COLOURS, strict=False):
        values = outcomes[method].arrays["curve/target_alignment"][:, :, number, -1].T
        plots.band(axes, epochs, values, LABELS.get(method, method), colour)
    title = f"{problem}, separability {cells[number].separability:.2g}"
    axes.set(title=title, xlabel="epoch", ylabel=MEASURES["target_alignment"])
    axes.legend(fontsize=7)


def scatter(axes: Any, cells: Sequence[tasks.Cell], outcomes: Mapping[str, app.Outcome]) -> None:
    """All nonlinearities: alignment with targets over alignment with inputs.

    Args:
      axes: Where to draw.
      cells: The tasks.
      outcomes: Outcome by nonlinearity.
    """
    aligned = [i for i, cell in enumerate(cells) if cell.separability > 0]
    for place, (method, outcome) in enumerate(outcomes.items()):
        pair = [outcome.arrays[name][:, aligned].mean(axis=(1, 2)) for name in _ALIGNMENTS]
        error = [x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else 0.0 for x in pair]
        colour = plots.COLOURS[place % len(plots.COLOURS)]
        marker = "o" if place < len(plots.COLOURS) else "s"
        axes.errorbar(
            pair[0].mean(),
            pair[1].mean(),
            xerr=error[0],
            yerr=error[1],
            fmt=marker,
            color=colour,
            markersize=5,
            label=LABELS.get(method, method),
        )
    axes.set(title="mean over tasks with c > 0", xlabel=MEASURES["input_alignment"])
    axes.set(ylabel=MEASURES["target_alignment"])
    axes.legend(fontsize=6, ncols=2)


def by_layer(axes: Any, cells: Sequence[tasks.Cell], outcomes: Mapping[str, app.Outcome]) -> None:
    """Alignments layer by layer: targets solid, inputs dashed.

    Args:
      axes: Where to draw.
      cells: The tasks.
      outcomes: Outcome by nonlinearity.
    """
    aligned = [i for i, cell in enumerate(cells) if cell.separability > 0]
    shown = [m for m in LABELS if m in outcomes] or list(outcomes)[:4]
    for method, colour in zip(shown, plots.COLOURS, strict=False):
        for name, style in zip(_ALIGNMENTS, ("--", "-"), strict=True):
            values = outcomes[method].arrays[f"layer/{name}"][:, aligned, -1].mean(axis=1).T
            label = LABELS.get(method, method) if style == "-" else ""
            plots.band(axes, np.arange(1, len(values) + 1), values, label, colour, f"{style}")
    axes.set(title="solid: targets; dashed: inputs", xlabel="layer", ylabel="alignment")
    axes.set_xticks(np.arange(1, len(values) + 1))
    axes.legend(fontsize=7)
