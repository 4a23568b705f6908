"""What HiCLR can be told: methods, flags, presets."""

import dataclasses
from typing import Any

from experiments.common import config
from experiments.common.errors import UserError

METHODS = {
    "random": "no training: the encoder as it was drawn, the yardstick",
    "skeletonclr": "the basic view in InfoNCE, nothing else",
    "aimclr": "and a normal view that learns from the basic one",
    "hiclr": "the paper: strong learns from normal, normal from basic",
    "naive_strong": "the same three views, all of them in InfoNCE (mean of the three losses)",
    "hiclr_flat": "strong and normal both learn from basic, no chain",
    "hiclr_symmetric": "no stop-gradient: each pair moves towards the other",
    "hiclr_reverse": "the reverse direction: the weaker view learns from the stronger one",
}
SYNTHETIC, MSR, UTKINECT, NTU = "synthetic", "msr_action3d", "utkinect", "ntu"
STRONG_AUGMENTATIONS = ("mask", "dae", "adain", "mask+dae", "none")
PROTOCOLS = ("linear", "finetune", "semi_1", "semi_10")
THREE = "three"
STREAMS = ("joint", "motion", "bone", THREE)
_WITH_STRONG_VIEW = ("hiclr", "naive_strong", "hiclr_flat", "hiclr_symmetric", "hiclr_reverse")
# What the encoder that stays as it was drawn does not use.
_OF_PRETRAINING = (
    *("feature_dim", "key_init", "shear_amplitude", "crop_ratio", "kernel_normalised_blur"),
    *("queue_size", "temperature", "momentum", "mining_epoch", "topk", "epochs", "steps"),
    *("learning_rate", "lr_drop_epoch", "probe_every"),
)


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Training, config.Data):
    """Settings of HiCLR."""

    method: str = config.field("hiclr", "What to pre-train.", choices=tuple(METHODS))
    dataset: str = config.field(
        SYNTHETIC,
        "synthetic (procedural actions), msr_action3d or utkinect (<name>.npz in --data_dir), or "
        "ntu ({train,val}_position.npy and {train,val}_label.npy in --data_dir).",
        choices=(SYNTHETIC, MSR, UTKINECT, NTU),
    )
    num_train: int = config.field(600, "Training clips (synthetic).", minimum=12)
    num_test: int = config.field(300, "Test clips (synthetic).", minimum=12)
    persons: int = config.field(
        1, "Figures in a clip (synthetic); the second is mostly absent.", minimum=1, maximum=2
    )
    cycles: float = config.field(
        1.0, "Swings in a slow clip, half those of a fast one (synthetic).", minimum=0.1
    )
    corrupted: float = config.field(
        0.05, "Share of joints that are far off, frame by frame (synthetic).", minimum=0, maximum=1
    )
    corruption: float = config.field(0.2, "How far off, in metres (synthetic).", minimum=0)
    frames: int = config.field(24, "Frames to which each clip is resized.", minimum=2)
    align: bool = config.field(
        False, "Turn each figure until its shoulders lie along x (msr_action3d, utkinect)."
    )
    stream: str = config.field(
        "joint",
        "What the encoder sees: joints, their motion, bones, or three encoders and their sum.",
        choices=STREAMS,
    )
    encoder: str = config.field(
        "mini", "Three blocks, or the paper's ten.", choices=("mini", "full")
    )
    hidden_channels: int = config.field(16, "Width of the first blocks.", minimum=1)
    hidden_dim: int = config.field(256, "Width of the features (full).", minimum=1)
    feature_dim: int = config.field(32, "Width of the embedding that is contrasted.", minimum=2)
    dropout: float = config.field(0.5, "Dropout of the blocks (full).", minimum=0, maximum=0.95)
    kernel_init: str = config.field(
        "fan_in",
        "Initial weights: U(-1, 1)/sqrt(fan in), or N(0, 0.02^2) as the authors.",
        choices=("fan_in", "normal"),
    )
    key_init: str = config.field(
        "copy",
        "The key encoder at first: a copy, or drawn anew as in the released code.",
        choices=("copy", "independent"),
    )
    bfloat16: bool = config.field(False, "Compute the encoder in bfloat16.")
    strong_aug: str = config.field(
        "mask",
        "The strong augmentation: joint mask, dropped and added edges (dae), SkeleAdaIN.",
        choices=STRONG_AUGMENTATIONS,
    )
    mask_ratio: float = config.field(
        0.1, "Share of the joints that is masked in each frame.", minimum=0, maximum=1
    )
    dropout_graph: float = config.field(
        0.1, "Largest rate at which edges vanish (dae).", minimum=0, maximum=0.95
    )
    add_graph: float = config.field(
        0.05, "Largest rate at which edges are added (dae).", minimum=0, maximum=1
    )
    adain_per_frame: bool = config.field(
        False, "Statistics of each frame instead of the clip (adain)."
    )
    growing: bool = config.field(
        True, "Stronger views contain the weaker augmentations; off keeps the sets disjoint."
    )
    shear_amplitude: float = config.field(0.5, "Largest shear of the basic set.", minimum=0)
    crop_ratio: int = config.field(
        6, "The basic set shifts a clip by up to 1/crop_ratio of its length.", minimum=1
    )
    kernel_normalised_blur: bool = config.field(
        False, "Divide the blur by the sum of its taps; the authors do not."
    )
    queue_size: int = config.field(512, "Earlier keys to contrast with (K).", minimum=2)
    temperature: float = config.field(0.07, "Temperature (tau).", minimum=1e-3)
    momentum: float = config.field(
        0.99, "How slowly the key encoder follows (m).", minimum=0, maximum=1
    )
    mining_epoch: int = config.field(
        150, "Beyond this epoch nearest neighbours count as positives.", minimum=0
    )
    topk: int = config.field(1, "Neighbours mined for each view.", minimum=1)
    batch_size: int = config.field(64, "Clips in a batch.", minimum=2)
    epochs: int = config.field(300, "Passes through the training clips.", minimum=1)
    steps: int = config.field(
        0, "Stop pre-training after so many steps; 0 goes through all epochs.", minimum=0
    )
    learning_rate: float = config.field(0.05, "Step size of SGD with momentum 0.9.", minimum=0)
    lr_drop_epoch: int = config.field(250, "Beyond this epoch the step size is a tenth.", minimum=0)
    weight_decay: float = config.field(1e-4, "Weight decay of all parameters.", minimum=0)
    probe_every: int = config.field(
        0, "Steps between probes for the learning curves; 0 probes at the end alone.", minimum=0
    )
    protocols: tuple[str, ...] = config.field(
        (),
        "Evaluations beside logistic probe and 5-NN: the authors' linear protocol, fine-tuning "
        "with all labels, with 1% and with 10% of them.",
        choices=PROTOCOLS,
    )
    linear_epochs: int = config.field(100, "Epochs of the linear protocol.", minimum=1)
    linear_rate: float = config.field(3.0, "Step size of the linear protocol.", minimum=0)
    finetune_epochs: int = config.field(70, "Epochs of fine-tuning.", minimum=1)
    finetune_rate: float = config.field(0.1, "Largest step size of fine-tuning.", minimum=0)

    def check(self) -> None:
        """Refuse what cannot run, and flags that would do nothing."""
        if self.dataset == SYNTHETIC:
            if self.data_dir:
                raise UserError(f"--data_dir: --dataset={self.dataset} reads no folder")
        else:
            if not self.data_dir:
                raise UserError(f"--dataset={self.dataset} needs --data_dir")
            own = ("num_train", "num_test", "persons", "cycles", "corrupted", "corruption")
            self._needs("--dataset=synthetic", own)
        if self.dataset in (SYNTHETIC, NTU):
            self._needs("--dataset=msr_action3d or utkinect", ("align",))
        if self.encoder == "mini":
            self._needs("--encoder=full", ("hidden_dim", "dropout"))
        if self.batch_size > self.queue_size:
            raise UserError(
                f"--batch_size={self.batch_size}: the queue holds --queue_size={self.queue_size}"
            )
        if self.topk > self.queue_size:
            raise UserError(f"--topk={self.topk}: the queue holds --queue_size={self.queue_size}")
        if not self.compare and self.method == "random":
            self._needs("a method that trains", _OF_PRETRAINING)
        if not self.compare and self.method not in _WITH_STRONG_VIEW:
            strong = ("strong_aug", "mask_ratio", "growing")
            self._needs("a method with a strong view", strong)
        if "mask" not in self.strong_aug:
            self._needs("--strong_aug=mask", ("mask_ratio",))
        if "dae" not in self.strong_aug:
            self._needs("--strong_aug=dae", ("dropout_graph", "add_graph"))
        if self.strong_aug != "adain":
            self._needs("--strong_aug=adain", ("adain_per_frame",))
        if "linear" not in self.protocols:
            self._needs("--protocols=linear", ("linear_epochs", "linear_rate"))
        if not set(self.protocols) - {"linear"}:
            self._needs("--protocols=finetune", ("finetune_epochs", "finetune_rate"))

    def _needs(self, other: str, names: tuple[str, ...]) -> None:
        """Refuse values that differ from the preset's where they would do nothing."""
        for name in config.changed(self, PRESETS):
            if name in names:
                raise UserError(f"--{name} needs {other}")


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "num_train": 48,
        "num_test": 24,
        "frames": 8,
        "hidden_channels": 2,
        "feature_dim": 8,
        "queue_size": 64,
        "batch_size": 16,
        "steps": 4,
        "linear_epochs": 2,
        "finetune_epochs": 1,
        "log_every": 2,
        "checkpoint_every": 2,
    },
    "quick": {"compare": True, "num_seeds": 3, "steps": 100, "probe_every": 25, "log_every": 25},
    "paper": {
        "dataset": NTU,
        "data_dir": "data",
        "frames": 50,
        "encoder": "full",
        "feature_dim": 128,
        "kernel_init": "normal",
        "queue_size": 32768,
        "momentum": 0.999,
        "batch_size": 128,
        "learning_rate": 0.1,
        "protocols": ("linear",),
    },
}
