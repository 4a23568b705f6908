"""Which geometry does a network learn: that of its inputs, or that of its targets?

COMMAND   ./run task_geometry               (quick preset, all nonlinearities, five seeds)
RESULT    see README.md, made from results/results.json
"""

import dataclasses
import functools

import numpy as np

from experiments.common import app, loop
from experiments.task_geometry import claims, figures, measures, tasks, training
from experiments.task_geometry.settings import METHODS, PRESETS, Config


def measure(config: Config, run: app.Run) -> app.Outcome:
    """Trains the networks of all nonlinearities at once, and measures those of one.

    Args:
      config: The settings, with the nonlinearity.
      run: The run.

    Returns:
      Means over the tasks that hold something of the targets, by seed, and everything by task.
    """
    source, learner, geometry = prepare(_shared(config))
    trained = loop.fit(
        learner.step,
        learner.init,
        num_steps=config.epochs * source.steps_per_epoch,
        seed_keys=run.seed_keys,
        folder=run.folder("train"),
        description=f"{len(config.names) * len(source.cells) * len(config.widths)} networks a seed",
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        batches=source.batches,
        devices=run.devices,
        start=source.tasks,
    )
    found = geometry.measure(trained.state, config.names.index(config.method))
    dials = np.array([cell.separability for cell in source.cells])
    aligned, blind = dials > 0, dials == 0
    names = (*measures.OF_KERNEL, *measures.OF_POINTS)
    metrics: dict[str, np.ndarray] = {}
    if aligned.any():
        metrics |= {name: found[name][:, aligned].mean(axis=(1, 2)) for name in names}
    if blind.any():
        metrics |= {
            f"{name}_at_0": found[name][:, blind].mean(axis=(1, 2)) for name in measures.ALIGNMENTS
        }
    return app.Outcome(metrics, found)


@functools.lru_cache(maxsize=1)
def prepare(config: Config) -> tuple[tasks.Source, training.Learner, measures.Geometry]:
    """The tasks, the networks and what measures them.

    Args:
      config: The settings.

    Returns:
      All three; asked again for the same settings, the same ones.
    """
    source = tasks.open_source(config)
    learner = training.Learner(config, source)
    return source, learner, measures.Geometry(learner, source, config)


def _shared(config: Config) -> Config:
    """The same settings for every nonlinearity that is trained together."""
    return dataclasses.replace(config, method=config.names[0])


EXPERIMENT = app.Experiment(
    slug="task_geometry",
    title="Task structure and nonlinearity jointly determine learned representational geometry",
    citation="Matteo Alleman, Jack W. Lindsey, Stefano Fusi. ICLR 2024. arXiv 2401.13558",
    about="""
Networks with one hidden layer learn to classify noisy clusters. Does the hidden layer end up with
the geometry of the inputs or with that of the targets? Two dials decide: how much the inputs hold
of the targets, and the tails of the nonlinearity. A tanh unit is flat on both sides, hears all
points and takes over the targets' geometry; a ReLU unit is flat on one side only, hears the points
of its half of the space and keeps the inputs'. The binary trains all tasks, nonlinearities, widths
and seeds in one program and measures alignment, parallelism, generalisation and decoding.""",
    config=Config,
    presets=PRESETS,
    preset_docs={
        "smoke": "seconds; shows that everything runs",
        "quick": "minutes on 2 cores: all nonlinearities, nine tasks, five seeds, 30 epochs",
        "paper": "the authors' grid: 96 tasks, ten seeds, 1000 epochs; for an accelerator",
    },
    methods=METHODS,
    labels={
        "input_alignment": "input alignment, c > 0",
        "target_alignment": "target alignment, c > 0",
        "ccgp": "CCGP",
        "shattering": "shattering",
        "input_alignment_at_0": "input alignment, c = 0",
        "target_alignment_at_0": "target alignment, c = 0",
    },
    measure=measure,
    claims=claims.claims,
    figures=figures.draw,
    examples=(
        "./run task_geometry --method=relu --num_bits=4 --num_targets=1,0",
        "./run task_geometry --widths=8,32,128 --num_bits=3 --num_targets=1",
        "./run task_geometry --task=xor --epochs=100",
        "./run task_geometry --method=tanh --num_bits=5 --depth=5 --init=uniform --readout=trained "
        "--optimizer=adam --learning_rate=0.001",
        "./run task_geometry --task=digits --readout=trained",
        "./run task_geometry --task=cifar10 --network=conv --data_dir=DIR --method=relu",
    ),
)

if __name__ == "__main__":
    app.main(EXPERIMENT)
