"""What the experiment can be told: nonlinearities, flags, presets."""

import dataclasses
from typing import Any

from asym import activations
from experiments.common import config
from experiments.common.errors import UserError

METHODS = {
    "tanh": "flat on both sides: takes over the geometry of the targets",
    "relu": "flat on the left, steep on the right: keeps more of the geometry of the inputs",
    "relu_ub1": "ReLU that is flat above 1 too",
    "relu_ub1.5": "ReLU that is flat above 1.5 too",
    "relu_ub2": "ReLU that is flat above 2 too",
    "relu6": "ReLU that is flat above 6 too",
    "relu_shift-1": "max(u - 1, 0)",
    "relu_shift-0.5": "max(u - 0.5, 0)",
    "relu_shift0.5": "max(u + 0.5, 0)",
    "relu_shift1": "max(u + 1, 0)",
    "leaky": "leaky ReLU, slope 0.01 on the left",
    "softplus": "smooth ReLU",
    "identity": "no nonlinearity: the control",
}

ACTIVATIONS: dict[str, activations.Activation] = {
    "tanh": activations.TANH,
    "relu": activations.RELU,
    "relu_ub1": activations.clipped_relu(1.0),
    "relu_ub1.5": activations.clipped_relu(1.5),
    "relu_ub2": activations.clipped_relu(2.0),
    "relu6": activations.clipped_relu(6.0),
    "relu_shift-1": activations.shifted_relu(-1.0),
    "relu_shift-0.5": activations.shifted_relu(-0.5),
    "relu_shift0.5": activations.shifted_relu(0.5),
    "relu_shift1": activations.shifted_relu(1.0),
    "leaky": activations.leaky_relu(0.01),
    "softplus": activations.SOFTPLUS,
    "identity": activations.IDENTITY,
}

PICTURES = ("digits", "cifar10")
BUILT = ("orthogonal", "kernel")
TASKS = (*BUILT, "xor", "patterns", *PICTURES)
_LARGEST_NUM_BITS = 6


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Training, config.Data):
    """Settings of the experiment."""

    method: str = config.field("tanh", "The nonlinearity.", choices=tuple(METHODS))
    task: str = config.field(
        "orthogonal",
        "orthogonal (parities of bits), kernel (random input kernels), xor (nudged towards linear "
        "separability), patterns (4 random ones), digits, cifar10 (TFDS set in --data_dir).",
        choices=TASKS,
    )
    num_bits: tuple[int, ...] = config.field(
        (),
        "Bits b of the orthogonal and kernel tasks, 2^b conditions; 2,3 if --num_targets is given.",
        minimum=2,
        maximum=_LARGEST_NUM_BITS,
    )
    num_targets: tuple[int, ...] = config.field(
        (),
        "Outputs k of each, 0 stands for b; 1,0 if --num_bits is given. Without both "
        "b=2 k=1, b=3 k=1 and b=3 k=3.",
        minimum=0,
    )
    separability: tuple[float, ...] = config.field(
        (),
        "Alignment of inputs and targets over its largest value sqrt(k / (2^b - 1)); 0,0.5,1 by "
        "default. For xor the share of the parity's own axis; 0,0.25,0.5,0.75,1 by default.",
        minimum=0,
        maximum=1,
    )
    scale: float = config.field(
        0.0, "Spread of random input spectra (orthogonal); 0 takes the closed form.", minimum=0
    )
    max_rank: int = config.field(
        0, "Largest rank of random kernels (kernel); 0 is full rank.", minimum=0
    )
    dim: int = config.field(
        0, "Input dimension D; 0 is 100, for xor 120, for patterns 200.", minimum=0
    )
    input_noise: float = config.field(
        -1.0,
        "Deviation of the noise on training inputs; -1 is 1, for xor 0.2, for pictures 0.",
        minimum=-1,
    )
    test_noise: float = config.field(
        -1.0, "The same for decoding; -1 is 0.5, for xor 0.2, for pictures 0.", minimum=-1
    )
    num_train: int = config.field(
        0, "Training samples, drawn once; 0 is 5000, for pictures all.", minimum=0
    )
    test_samples: int = config.field(
        10, "Noisy samples of each condition for decoding; half of them train.", minimum=2
    )
    network: str = config.field(
        "mlp",
        "Fully connected, or two convolutions with pooling before it (pictures).",
        choices=("mlp", "conv"),
    )
    widths: tuple[int, ...] = config.field((128,), "Units of the hidden layers.", minimum=2)
    depth: int = config.field(1, "Fully connected hidden layers.", minimum=1)
    init: str = config.field(
        "normal",
        "Weights and biases before training: N(0, 1 / fan-in) or U(-1, 1) / sqrt(fan-in).",
        choices=("normal", "uniform"),
    )
    readout: str = config.field(
        "fixed", "Whether the last layer learns.", choices=("fixed", "trained")
    )
    readout_weights: str = config.field(
        "normal",
        "The last layer before training; binary is +-1 / sqrt(width), as many of each.",
        choices=("normal", "uniform", "binary"),
    )
    optimizer: str = config.field(
        "sgd", "Plain, scaled by running squares (0.99), or Adam.", choices=("sgd", "rms", "adam")
    )
    learning_rate: float = config.field(0.1, "Step size.", minimum=0)
    batch_size: int = config.field(64, "Samples in a batch.", minimum=1)
    epochs: int = config.field(30, "Passes through the training samples.", minimum=1)

    @property
    def names(self) -> tuple[str, ...]:
        """The nonlinearities that are trained in one program."""
        return tuple(METHODS) if self.compare else (self.method,)

    def check(self) -> None:
        """Refuse what cannot run and what would do nothing."""
        for name in ("num_bits", "num_targets"):
            if getattr(self, name) and self.task not in BUILT:
                raise UserError(f"--{name} is a setting of --task=orthogonal and kernel")
        if self.separability and self.task not in (*BUILT, "xor"):
            raise UserError("--separability is a setting of --task=orthogonal, kernel and xor")
        if self.scale and self.task != "orthogonal":
            raise UserError("--scale is a setting of --task=orthogonal")
        if self.max_rank and self.task != "kernel":
            raise UserError("--max_rank is a setting of --task=kernel")
        if self.task in PICTURES and self.dim:
            raise UserError(f"--dim: the pictures of --task={self.task} have their own size")
        if self.network == "conv" and self.task not in PICTURES:
            raise UserError(f"--network=conv needs pictures, not --task={self.task}")
        if self.task == "cifar10" and not self.data_dir:
            raise UserError("--task=cifar10 needs --data_dir")
        if self.task != "cifar10" and self.data_dir:
            raise UserError(f"--data_dir: --task={self.task} reads no folder")
        if self.readout_weights == "binary" and any(width % 2 for width in self.widths):
            raise UserError("--readout_weights=binary needs even --widths")
        for name in ("num_bits", "num_targets", "separability", "widths"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"--{name}={','.join(map(str, values))}: a value is there twice")


# quick: what the demands were found on; paper: the grid of the authors' code.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "num_seeds": 2,
        "epochs": 2,
        "num_train": 200,
        "widths": (16,),
        "log_every": 4,
        "checkpoint_every": 4,
    },
    "quick": {"compare": True, "num_seeds": 5, "log_every": 79, "checkpoint_every": 790},
    "paper": {
        "num_bits": (2, 3, 4, 5),
        "num_targets": (1, 0),
        "separability": tuple(i / 11 for i in range(12)),
        "num_seeds": 10,
        "epochs": 1000,
        "compare": True,
        "log_every": 790,
        "checkpoint_every": 7900,
    },
}
