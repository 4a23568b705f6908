"""How much norm-ratio loss, for how long: the weight w_nr against the training steps of ASL.

COMMAND   python -m experiments.asl.sweep       (20 cells, two seeds)
RESULT    results/sweep.json and results/sweep.png
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.asl import main, scoring, sources, training
from experiments.common import app, config, files, plots, report

WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0)
STEPS = (300, 600, 1200, 2400)
MEASURED = ("direction_accuracy", "mu_ap_cosine", "mu_ap_norm_filter")
_CONTROL, _CHOSEN = 0.0, 10.0


def cell(steps: int, weight: float) -> str:
    """The name of a cell of the sweep.

    Args:
      steps: Training steps.
      weight: Weight w_nr.

    Returns:
      For instance "steps_300_w_nr_10".
    """
    return f"steps_{steps}_w_nr_{weight:g}"


CELLS = {cell(steps, weight): (steps, weight) for steps in STEPS for weight in WEIGHTS}


@dataclasses.dataclass(frozen=True)
class Config(config.Compared):
    """Settings of the sweep; what it trains is ASL's quick preset."""

    method: str = config.field(
        cell(1200, _CHOSEN),
        "A cell; all weights of its step count are trained with it.",
        choices=tuple(CELLS),
    )
    shorten: int = config.field(1, "Divide every number of steps by this.", minimum=1)


def measure(config: Config, run: app.Run) -> app.Outcome:
    """One cell; the first cell of a step count trains and scores all weights.

    Args:
      config: The settings, with the cell.
      run: The run.

    Returns:
      Metrics by seed.
    """
    steps, weight = CELLS[config.method]
    folder = run.folder(f"steps_{steps}")
    stored = folder / "scores.npz"
    if not stored.exists():
        files.write_arrays(stored, _scores(config, run, steps, folder.name))
    scores = files.read_arrays(stored)
    return app.Outcome({name: scores[name][:, WEIGHTS.index(weight)] for name in MEASURED})


def _scores(config: Config, run: app.Run, steps: int, name: str) -> dict[str, np.ndarray]:
    """Metric to values (num_seeds, weights) of networks trained for so many steps.

    The weights are a part of the seeds' axis: five networks of one seed see the same data and
    start from the same parameters, all in one compiled program.
    """
    settings = main.EXPERIMENT.settings(
        config.preset,
        method="asl",
        steps=max(1, steps // config.shorten),
        seed=config.seed,
        num_seeds=config.num_seeds,
    )
    keys = run.seed_keys[np.repeat(np.arange(config.num_seeds), len(WEIGHTS))]
    source = sources.open_source(settings, np.tile(WEIGHTS, config.num_seeds), keys)
    learner = training.Learner(settings, "asl", source.num_classes)
    trained = main.fit(learner, source, settings, keys, run, name)
    queries = main.describe(learner, trained.state, source.queries, settings)
    references = main.describe(learner, trained.state, source.references, settings)
    rows = []
    for query, reference, truth in zip(queries, references, source.truths, strict=True):
        found = scoring.candidates(
            query, reference, top_k=settings.top_k, max_results=settings.max_results
        )
        metrics, _ = scoring.measure(
            query,
            reference,
            found,
            truth,
            rule="norm",
            threshold=settings.ratio_threshold,
            soft_beta=settings.soft_beta,
            rng=np.random.default_rng(settings.seed),
        )
        rows.append([metrics[m] for m in MEASURED])
    values = np.reshape(rows, (config.num_seeds, len(WEIGHTS), len(MEASURED)))
    return {m: values[..., i] for i, m in enumerate(MEASURED)}


def claims(config: Config, outcomes: Mapping[str, app.Outcome]) -> Sequence[report.Claim]:
    """What the paper's headline comes to at each length of training; reported, not demanded.

    Args:
      config: The settings.
      outcomes: Outcome by cell.

    Returns:
      A line a step count.
    """
    lines = []
    for steps in STEPS:
        statement = (
            f"muAP with the filter at w_nr = {_CHOSEN:g} minus cosine muAP at w_nr = {_CONTROL:g}, "
            f"{steps} steps"
        )
        cells = [cell(steps, _CHOSEN), cell(steps, _CONTROL)]
        if all(c in outcomes for c in cells):
            filtered, cosine = (outcomes[c].metrics for c in cells)
            gained = filtered["mu_ap_norm_filter"] - cosine["mu_ap_cosine"]
            lines.append(report.report_only(statement, gained))
        else:
            lines.append(report.not_measured(statement, "needs --compare"))
    return lines


def draw(config: Config, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Retrieval and direction over the weight, a line a step count.

    Args:
      config: The settings.
      outcomes: Outcome by cell.
      workdir: The run's folder.
      folder: Where the figure goes.
    """
    panels = (
        ("mu_ap_cosine", "muAP by cosine"),
        ("mu_ap_norm_filter", "muAP with the filter"),
        ("direction_accuracy", "direction accuracy"),
    )
    figure, grid = plots.new(len(panels), width=4.0)
    for axes, (metric, title) in zip(grid[0], panels, strict=True):
        for steps, colour in zip(STEPS, plots.COLOURS, strict=False):
            measured = [i for i, weight in enumerate(WEIGHTS) if cell(steps, weight) in outcomes]
            if measured:
                found = [outcomes[cell(steps, WEIGHTS[i])].metrics[metric] for i in measured]
                label = f"{steps} steps"
                plots.band(axes, np.array(measured), np.stack(found), label, colour, ".-")
        axes.set(title=title, xlabel="weight of the norm-ratio loss, w_nr")
        # Equal distances: the weights span two decades and hold 0.
        axes.set_xticks(range(len(WEIGHTS)), [f"{weight:g}" for weight in WEIGHTS])
    by_cosine, filtered, direction = grid[0]
    top = max(by_cosine.get_ylim()[1], filtered.get_ylim()[1])
    by_cosine.set_ylim(0, top)
    filtered.set_ylim(0, top)
    direction.set_ylim(0, 1.02)
    direction.axhline(0.5, color="black", linewidth=1)
    direction.legend(fontsize=8)
    plots.save(figure, folder / "sweep.png")


EXPERIMENT = app.Experiment(
    slug="asl_sweep",
    program="python -m experiments.asl.sweep",
    title="ASL: weight of the norm-ratio loss against training steps",
    citation=main.EXPERIMENT.citation,
    about="""
The paper does not publish the weight w_nr of the norm-ratio loss, and its margin is a claim about
long training. This sweep reports, on the quick preset's data, what each weight gives after how many
steps: the direction accuracy, and retrieval by cosine and with the filter.
Run it with `python -m experiments.asl.sweep`.""",
    config=Config,
    presets={"smoke": {"shorten": 300}, "quick": {"compare": True, "num_seeds": 2}},
    preset_docs={
        "smoke": "seconds; shows that everything runs",
        "quick": "all cells, two seeds, on procedural scenes",
    },
    methods={
        name: f"{steps} steps at w_nr = {weight:g}" for name, (steps, weight) in CELLS.items()
    },
    labels={"mu_ap_cosine": "muAP, cosine", "mu_ap_norm_filter": "muAP, norm filter"},
    measure=measure,
    claims=claims,
    figures=draw,
)

if __name__ == "__main__":
    app.main(EXPERIMENT)
