"""ARL: rely on each modality in inverse proportion to its variance, not equally.

COMMAND   ./run arl                         (quick preset, all methods, ten seeds)
RESULT    see README.md, made from results/results.json
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.arl import claims, figures, methods, model, sources, training
from experiments.common import app, config, loop
from experiments.common.errors import UserError

# The second setting of paired_digits: both modalities learn equally fast.
EVEN: dict[str, Any] = {"noise_audio": 0.25, "noise_visual": 0.5, "visual_scale": 1.0, "epochs": 40}
_LAST_EPOCHS = 5


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Training, config.Data):
    """Settings of ARL."""

    method: str = config.field("arl", "What to train.", choices=tuple(methods.METHODS))
    dataset: str = config.field(
        sources.DIGITS,
        "paired_digits (two noisy digits of a class) or crema_d (train.npz and test.npz in "
        "--data_dir).",
        choices=(sources.DIGITS, sources.CREMA_D),
    )
    noise_audio: float = config.field(0.5, "Noise on the audio digit.", minimum=0)
    noise_visual: float = config.field(0.3, "Noise on the visual digit.", minimum=0)
    visual_scale: float = config.field(
        0.1, "Factor of the visual digit with its noise; small is slow to learn.", minimum=0
    )
    even_set: bool = config.field(
        False,
        "Measure the second setting too: noise 0.25 (audio) and 0.5 (visual), scale 1, 40 epochs.",
    )
    image_size: int = config.field(224, "Side of the pictures (crema_d).", minimum=32)
    encoder: str = config.field("mlp", "The encoder of each modality.", choices=model.ENCODERS)
    fusion: str = config.field(
        "concat", "The head, which also predicts from one modality.", choices=model.FUSIONS
    )
    gamma: float = config.field(4.0, "Weight of the unimodal losses after the start.", minimum=0)
    T: float = config.field(8.0, "Sharpness of the strengths.", minimum=0)
    start: int = config.field(3, "Epochs with gamma 1 and unscaled gradients.", minimum=0)
    entropy_floor: float = config.field(
        0.3,
        "Smallest share of the entropy; at 1/2 both variances count as equal.",
        minimum=0,
        maximum=0.5,
    )
    ogm_alpha: float = config.field(0.8, "Strength of ogm_ge.", minimum=0)
    batch_size: int = config.field(64, "Examples in a batch.", minimum=2)
    epochs: int = config.field(30, "Passes through the training data.", minimum=1)
    learning_rate: float = config.field(0.02, "Step size of SGD.", minimum=0)
    decay_epochs: tuple[int, ...] = config.field(
        (70, 150), "Epochs from which on the step size is a tenth.", minimum=1
    )
    momentum: float = config.field(0.9, "Momentum of SGD.", minimum=0, maximum=1)
    weight_decay: float = config.field(1e-4, "Weight decay, added to the gradient.", minimum=0)
    clip_norm: float = config.field(40.0, "Largest joint norm of the gradient.", minimum=1e-6)

    def check(self) -> None:
        """Refuse what cannot run."""
        real = self.dataset == sources.CREMA_D
        if real and not self.data_dir:
            raise UserError(f"--dataset={self.dataset} needs --data_dir")
        if real and self.encoder == "mlp":
            raise UserError(f"--dataset={self.dataset} needs --encoder=resnet18")
        if real and self.even_set:
            raise UserError("--even_set is a setting of --dataset=paired_digits")
        if not real and self.data_dir:
            raise UserError(f"--data_dir: --dataset={self.dataset} reads no folder")


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"num_seeds": 2, "epochs": 2, "start": 1, "log_every": 14, "checkpoint_every": 14},
    "quick": {"compare": True, "num_seeds": 10, "even_set": True},
    "paper": {
        "dataset": sources.CREMA_D,
        "data_dir": "data",
        "encoder": "resnet18",
        "start": 5,
        "epochs": 100,
        "learning_rate": 1e-3,
    },
}


def measure(config: Config, run: app.Run) -> app.Outcome:
    """Trains and tests one method, on one setting or on two.

    Args:
      config: The settings, with the method.
      run: The run.

    Returns:
      Metrics by seed, and the curves of the figure.
    """
    metrics, curves = train_and_test(config, run, f"train_{config.method}")
    if config.even_set:
        even = dataclasses.replace(config, **EVEN)
        found, _ = train_and_test(even, run, f"train_{config.method}_even")
        metrics |= {f"{name}_even": values for name, values in found.items()}
    return app.Outcome(metrics, {"curves": curves})


def train_and_test(
    config: Any, run: app.Run, name: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Trains one method for all seeds and tests it.

    Args:
      config: The settings.
      run: The run.
      name: Folder of the training in the run.

    Returns:
      Metrics by seed, and the curves over epochs (num_seeds, epochs, len(training.CURVES)).
    """
    source = sources.open_source(config, run.seed_keys)
    learner = training.Learner(config, source)
    evaluation = None
    if not source.per_seed:
        test = source.test
        evaluation = loop.Evaluation(
            lambda state, key: {f"test_{k}": v for k, v in learner.accuracies(state, test).items()},
            every=source.steps_per_epoch,
        )
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
        evaluation=evaluation,
        devices=run.devices,
        # Convolutions over different weights at once become slow grouped ones.
        map_seeds=config.encoder != "mlp",
    )
    accuracies = jax.jit(jax.vmap(learner.accuracies, (0, 0 if source.per_seed else None)))
    found = {k: np.asarray(v) for k, v in accuracies(trained.state, source.test).items()}
    curves = np.asarray(trained.state.curves) / source.steps_per_epoch
    if not methods.is_unimodal(config.method):
        # The dependence of a model that never fuses says nothing.
        found["gap"] = curves[:, -_LAST_EPOCHS:, training.CURVES.index("gap")].mean(axis=1)
    return found, curves


EXPERIMENT = app.Experiment(
    slug="arl",
    title="Improving Multimodal Learning via Imbalanced Learning",
    citation="Shicai Wei, Chunbo Luo, Yang Luo. ICCV 2025. arXiv 2507.10203",
    about="""
Networks that learn from two modalities at once often neglect one of them. Balancing how fast the
modalities learn is not the optimum: a mixture of predictions varies least when each is relied on in
inverse proportion to its variance. ARL re-weights the gradients that enter the encoders until the
dependence on the modalities has that ratio, and trains each modality through the shared head too.
The binary trains the method, its parts and its rivals, and tells which part earns what.""",
    config=Config,
    presets=PRESETS,
    preset_docs={
        "smoke": "seconds; shows that everything runs",
        "quick": "minutes on 2 cores: all methods, ten seeds, two settings of paired digits",
        "paper": "two ResNet-18 on CREMA-D in --data_dir (default ./data), 100 epochs",
    },
    methods=methods.METHODS,
    labels={
        "accuracy_audio": "audio alone",
        "accuracy_visual": "visual alone",
        "gap": "|log d ratio - log q ratio|",
        "accuracy_even": "accuracy, even set",
        "accuracy_audio_even": "audio alone, even set",
        "accuracy_visual_even": "visual alone, even set",
        "gap_even": "gap, even set",
    },
    measure=measure,
    claims=claims.claims,
    figures=figures.draw,
    examples=(
        "./run arl --method=arl --num_seeds=1",
        "./run arl --fusion=gated --T=4 --noeven_set",
        "./run arl --noise_audio=0.25 --noise_visual=0.5 --visual_scale=1 --epochs=40 --noeven_set",
        "./run arl --preset=paper --compare --data_dir=DIR",
    ),
)

if __name__ == "__main__":
    app.main(EXPERIMENT)
