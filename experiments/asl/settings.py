"""What ASL can be told: methods, flags, presets."""

import dataclasses
from typing import Any

from experiments.asl import model, sources, training
from experiments.common import config
from experiments.common.errors import UserError

METHODS = {
    "metric": "metric learning alone (w_nr = 0), scored by cosine: the symmetric control",
    "asl": "the paper: norm-ratio loss, and pairs whose query is longer are rejected",
    "asl_softscore": "the asl network; longer queries are discounted instead of rejected",
    "asl_reversed": "norm-ratio loss with the roles swapped, the same filter: must hurt",
    "norm_regress": "a head regresses the kept area, and pairs are rejected by it",
    "random_filter": "the asl network; a random half of the pairs is rejected",
}


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Training, config.Data):
    """Settings of ASL."""

    method: str = config.field("asl", "What to train and how to score.", choices=tuple(METHODS))
    dataset: str = config.field(
        sources.PROCEDURAL,
        "synthetic_copies (procedural scenes), photos (bundled photographs), tfds:<name> (pictures "
        "of a prepared TFDS set as scenes) or disc21 (DISC21/NDEC folders in --data_dir).",
    )
    num_scenes: int = config.field(300, "Training scenes, a class each.", minimum=2)
    num_views: int = config.field(8, "Views made of each training scene.", minimum=2)
    num_positives: int = config.field(100, "Test queries that are copies.", minimum=1)
    num_unrelated: int = config.field(50, "Test queries without any reference.", minimum=0)
    share_hard_negatives: float = config.field(
        0.5, "Share of reversed hard negatives among the related queries.", minimum=0, maximum=0.95
    )
    crop_mode: str = config.field(
        "crop_resize",
        "How a crop becomes a picture: resized, or pasted on a canvas.",
        choices=("crop_resize", "crop_pad"),
    )
    hard_negative_pairs: str = config.field(
        "same_class",
        "Training use of NDEC's pairs (disc21): one class without direction, two, or none.",
        choices=("same_class", "separate", "off"),
    )
    input_size: int = config.field(32, "Side of the network's input in pixels.", minimum=8)
    backbone: str = config.field("small", "The network.", choices=model.BACKBONES)
    backbone_weights: str = config.field(
        "", "Pre-trained backbone: .safetensors with torchvision's names."
    )
    waveblock: bool = config.field(False, "Waveblock in training (resnets only).")
    groups: int = config.field(12, "Classes in a batch (G).", minimum=2)
    views: int = config.field(4, "Views of each class in a batch (K).", minimum=2)
    steps: int = config.field(1200, "Training steps.", minimum=1)
    learning_rate: float = config.field(1e-3, "Adam's largest step size.", minimum=0)
    schedule: str = config.field(
        "warmup_cosine",
        "Step size: warm-up and cosine to 0, or the published trainer's factors by epoch.",
        choices=("warmup_cosine", "baseline"),
    )
    warmup_steps: int = config.field(100, "Steps of linear warm-up (warmup_cosine).", minimum=0)
    w_ce: float = config.field(10.0, "Weight of the label-smoothed cross entropy.", minimum=0)
    w_tri: float = config.field(1.0, "Weight of the batch-hard soft triplet loss.", minimum=0)
    w_nr: float = config.field(
        10.0, "Weight of the norm-ratio loss (of the regression, for norm_regress).", minimum=0
    )
    smoothing: float = config.field(0.1, "Label smoothing.", minimum=0, maximum=1)
    margin: float = config.field(0.0, "Margin of the triplet loss.", minimum=0, maximum=1)
    triplet_normalize: bool = config.field(
        True, "Triplet on 8 x unit features, which leaves the length to the norm-ratio loss."
    )
    pair_sampling: str = config.field(
        "random_one",
        "Pairs of the norm-ratio loss: one random pair a class, all, or largest and smallest.",
        choices=("random_one", "all_pairs", "extremes"),
    )
    norm_feature: str = config.field(
        "proj",
        "The feature whose length counts: the projector's output or the pooled one.",
        choices=tuple(training.FEATURE),
    )
    filter: bool = config.field(True, "Reject or discount pairs; off scores by cosine alone.")
    ratio_threshold: float = config.field(1.0, "Largest norm ratio that is kept.", minimum=0)
    soft_beta: float = config.field(2.0, "Strength of the discount (asl_softscore).", minimum=0)
    top_k: int = config.field(20, "References kept a query.", minimum=1)
    max_results: int = config.field(500_000, "Pairs kept in all.", minimum=1)
    stretch: float = config.field(
        0.0, "Score normalisation: times the mean similarity to the training set.", minimum=0
    )
    multi_scale: tuple[int, ...] = config.field(
        (), "Input sizes whose descriptors are averaged; lengths come from --input_size.", minimum=8
    )

    def check(self) -> None:
        """Refuse what cannot run."""
        sources.check_name(self.dataset)
        if self.dataset in (sources.PROCEDURAL, sources.PHOTOS):
            if self.data_dir:
                raise UserError(f"--data_dir: --dataset={self.dataset} reads no folder")
        elif not self.data_dir:
            raise UserError(f"--dataset={self.dataset} needs --data_dir")
        if self.views > self.num_views:
            raise UserError(f"--views={self.views}: there are --num_views={self.num_views}")
        if self.waveblock and self.backbone == "small":
            raise UserError("--waveblock needs a resnet --backbone")


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "num_scenes": 24,
        "num_positives": 10,
        "num_unrelated": 5,
        "steps": 20,
        "log_every": 10,
        "checkpoint_every": 10,
    },
    "quick": {"compare": True, "num_seeds": 3},
    "paper": {
        "dataset": sources.DISC,
        "data_dir": "data",
        "input_size": 256,
        "backbone": "resnet50",
        "waveblock": True,
        "groups": 32,
        "num_views": 20,
        "steps": 200_000,
        "learning_rate": 3.5e-4,
        "schedule": "baseline",
        "w_nr": 1.0,
        "triplet_normalize": False,
        "multi_scale": (200, 256, 320, 400),
        "log_every": 100,
        "checkpoint_every": 2000,
    },
}
