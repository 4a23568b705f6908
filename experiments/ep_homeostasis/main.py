"""Equilibrium propagation without weight symmetry: homeostasis of the Jacobian.

COMMAND   ./run ep_homeostasis              (quick preset, eight methods, three seeds)
RESULT    see README.md, made from results/results.json
"""

from typing import Any

import jax
import numpy as np

from experiments.common import app, loop
from experiments.ep_homeostasis import claims, figures, monitors, settings, sources, training
from experiments.ep_homeostasis.settings import METHODS, PRESET_DOCS, PRESETS, Config

# Test examples of a learning curve; the table's numbers are of the whole set.
_CURVE_EXAMPLES = 1000


def measure(config: Config, run: app.Run) -> app.Outcome:
    """Trains and tests one method, at one angle of the weights or at several.

    Args:
      config: The settings, with the method.
      run: The run.

    Returns:
      Metrics by seed, and the accuracies and alignments over the angles.
    """
    chosen = settings.resolved(config)
    source = sources.open_source(chosen)
    first, *others = chosen.angles
    if config.method not in settings.ANGLED or chosen.arch == "loop":
        others = []
    metrics = train_and_test(chosen, source, run, first, with_curve=True)
    at = [metrics]
    for angle in others:
        at.append(train_and_test(chosen, source, run, angle, with_curve=False))
    shown = {f"accuracy_angle{a:g}": m["accuracy"] for a, m in zip(others, at[1:], strict=True)}
    arrays = {"angles": np.array([first, *others])}
    for name in ("accuracy", next(n for n in metrics if n.startswith("cos_"))):
        arrays[name] = np.stack([m[name] for m in at])
    return app.Outcome(metrics | shown, arrays)


def folder_name(method: str, angle: float) -> str:
    """Name of the folder of one training.

    Args:
      method: The method.
      angle: Angle of the weights at the start.

    Returns:
      For instance "train_ep_90".
    """
    return f"train_{method}_{angle:g}"


def train_and_test(
    config: Any, source: sources.Source, run: app.Run, angle: float, *, with_curve: bool
) -> dict[str, np.ndarray]:
    """Trains one method at one angle for all seeds and tests it.

    Args:
      config: The settings, resolved.
      source: The data.
      run: The run.
      angle: Angle of feedback to forward weights at the start.
      with_curve: Whether to measure after every epoch too.

    Returns:
      Metrics by seed.
    """
    learner = training.Learner(config, source, angle)
    few = sources.Examples(*(part[:_CURVE_EXAMPLES] for part in source.test))
    curve = loop.Evaluation(
        lambda state, key: {
            f"test_{k}": v for k, v in monitors.measure(learner, state.params, few).items()
        },
        every=source.steps_per_epoch,
    )
    name = folder_name(config.method, angle)
    trained = loop.fit(
        learner.step,
        learner.init,
        num_steps=config.epochs * source.steps_per_epoch,
        seed_keys=run.seed_keys,
        folder=run.folder(name),
        description=name.removeprefix("train_"),
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        batches=source.batches,
        evaluation=curve if with_curve else None,
        devices=run.devices,
        # Convolutions over different weights at once are slow.
        map_seeds=config.arch == settings.CNN,
    )
    params = trained.state.params
    monitors.warn_of_circle(learner, params, source.test, name.removeprefix("train_"))
    found = jax.jit(
        lambda params, test: (
            jax.lax.map(lambda p: monitors.measure(learner, p, test), params)
            if config.arch == settings.CNN
            else jax.vmap(lambda p: monitors.measure(learner, p, test))(params)
        )
    )(params, sources.Examples(*source.test))
    return {k: np.asarray(v, np.float64) for k, v in found.items()}


EXPERIMENT = app.Experiment(
    slug="ep_homeostasis",
    title="Improving equilibrium propagation without weight symmetry through Jacobian homeostasis",
    citation="Axel Laborieux, Friedemann Zenke. ICLR 2024. arXiv 2309.02214",
    about="""
Equilibrium propagation trains a network by comparing where it comes to rest freely and under a
small nudge of its output. It is exact for symmetric weights and infinitesimal nudges. A finite
nudge does no harm if it goes around a circle in the complex plane; asymmetric weights do, and a
homeostatic loss that makes the Jacobian (not the weights) symmetric repairs most of it.
The binary measures both biases, and trains the method, its parts and its rivals.""",
    config=Config,
    presets=PRESETS,
    preset_docs=PRESET_DOCS,
    methods=METHODS,
    labels={
        "cos_l1": "cosine of errors, layer 1",
        "cos_l2": "cosine of errors, layer 2",
        "symmetry": "symmetry of J",
        "residual": "free residual",
        "accuracy_angle45": "accuracy, angle 45",
        "accuracy_angle0": "accuracy, angle 0",
    },
    measure=measure,
    claims=claims.claims,
    figures=figures.draw,
    examples=(
        "./run ep_homeostasis --method=ep_homeo --num_seeds=1",
        "./run ep_homeostasis --method=custom --n_phases=6 --beta=0.5 --act=dsilu",
        "./run ep_homeostasis --method=loop_homeo --homeo_coef=0.1",
        "./run ep_homeostasis --preset=paper --method=ep_homeo --data_dir=DIR",
        "./run ep_homeostasis --preset=cnn --method=ep_n2_homeo --data_dir=DIR",
    ),
)

if __name__ == "__main__":
    app.main(EXPERIMENT)
