"""Angle of the weights x homeostasis off and on x backpropagation, on digits or on MNIST.

COMMAND   python -m experiments.ep_homeostasis.table                          (digits, ten seeds)
          python -m experiments.ep_homeostasis.table --preset=mnist --data_dir=DIR
RESULT    results/table.json and results/mnist.json
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from experiments.common import app, config, plots, report
from experiments.ep_homeostasis import claims, figures, main, settings

METHODS = {name: settings.METHODS[name] for name in ("ep", "ep_homeo", "bp")}


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": settings.PRESETS["smoke"] | {"compare": True, "angles": (90.0, 0.0)},
    "quick": settings.PRESETS["quick"] | {"num_seeds": 10, "angles": (90.0, 0.0)},
    "mnist": {
        "compare": True,
        "num_seeds": 3,
        "angles": (90.0, 0.0),
        "dataset": "mnist",
        "data_dir": "data",
        "limit": 20_000,
        "batch_size": 100,
        "epochs": 5,
        "log_every": 100,
        "checkpoint_every": 600,
    },
}


@dataclasses.dataclass(frozen=True)
class Config(settings.Config):
    """Settings of the table: those of the binary."""

    compared: ClassVar[Mapping[str, str]] = METHODS
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    method: str = config.field("ep_homeo", "What to train.", choices=tuple(METHODS))


def judge(config: Any, outcomes: Mapping[str, app.Outcome]) -> Sequence[report.Claim]:
    """What homeostasis changes, reported and not demanded.

    Args:
      config: The settings.
      outcomes: Outcome by method.

    Returns:
      The differences that could be measured.
    """
    found = claims.learning(config, outcomes, demanded=False)
    return [c for c in found if c.measured is not None]


def draw(config: Any, outcomes: Mapping[str, app.Outcome], workdir: Path, folder: Path) -> None:
    """Learning curves and final accuracies.

    Args:
      config: The settings.
      outcomes: Outcome by method.
      workdir: The run's folder.
      folder: Where the figure goes.
    """
    figure, grid = plots.new(2, rows=2, width=5.4, height=3.6)
    figures.training(grid, outcomes, workdir)
    plots.save(figure, folder / "table.png")


EXPERIMENT = dataclasses.replace(
    main.EXPERIMENT,
    config=Config,
    presets=PRESETS,
    preset_docs={
        "smoke": "seconds; shows that everything runs",
        "quick": "digits, ten seeds",
        "mnist": "a third of MNIST in --data_dir (default ./data): 784-64-64-10, three seeds",
    },
    methods=METHODS,
    claims=judge,
    figures=draw,
    examples=("python -m experiments.ep_homeostasis.table --preset=mnist --data_dir=DIR",),
    program="python -m experiments.ep_homeostasis.table",
)

if __name__ == "__main__":
    app.main(EXPERIMENT)
