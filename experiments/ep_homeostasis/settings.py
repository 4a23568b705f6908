"""What equilibrium propagation can be told: learning rules, flags, presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from experiments.common import config
from experiments.common.errors import UserError
from experiments.ep_homeostasis import model, optimizers, sources

ALGORITHMS = {
    "hep": "equilibrium propagation, exact (--n_phases=0), classic (1) or holomorphic (2 and more)",
    "online_hep": "holomorphic, with a nudge that never stops turning",
    "bp": "backpropagation through the last --t_nudge steps",
    "rbp": "recurrent backpropagation",
    "neumann": "recurrent backpropagation as a Neumann series",
}
MLPS = ("recip", "loop")
CNN = "cnn"
# Above it a dense Jacobian of each sample is too large.
MOST_UNITS = 1000

# Run by --compare, which shall take minutes.
METHODS = {
    "ep": "equilibrium propagation with the exact derivative",
    "ep_homeo": "the paper: ep, with homeostasis of the Jacobian",
    "bp": "backpropagation through the steps of the network",
    "ep_n2": "ep with two finite nudges, +beta and -beta",
    "ep_homeo_exact": "ep, with homeostasis of the dense Jacobian instead of random probes",
    "ep_kolen_pollack": "ep, with weights that are made symmetric directly: same update, decay",
    "loop": "ep in the looped wiring, which has no reciprocal weights",
    "loop_homeo": "loop, with homeostasis",
}
# Run one at a time.
FURTHER = {
    "bp_homeo": "backpropagation, with homeostasis",
    "rbp": "recurrent backpropagation",
    "neumann": "recurrent backpropagation as a Neumann series",
    "ep_n2_homeo": "ep_n2, with homeostasis",
    "ep_n4": "ep with four nudges around the circle of radius beta",
    "ep_online": "ep whose nudge never stops turning, four blocks a turn",
}
CUSTOM = "custom"

_PLAIN: dict[str, Any] = {"algo": "hep", "n_phases": 0, "homeo_coef": 0.0, "kp_decay": 0.0}
# With homeostasis the coefficient is the flag's.
_HOMEO: dict[str, Any] = {"algo": "hep", "n_phases": 0, "kp_decay": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    CUSTOM: {},
    "ep": _PLAIN,
    "ep_homeo": _HOMEO,
    "bp": _PLAIN | {"algo": "bp"},
    "bp_homeo": _HOMEO | {"algo": "bp"},
    "rbp": _PLAIN | {"algo": "rbp"},
    "neumann": _PLAIN | {"algo": "neumann"},
    "ep_n2": _PLAIN | {"n_phases": 2},
    "ep_n2_homeo": _HOMEO | {"n_phases": 2},
    "ep_n4": _PLAIN | {"n_phases": 4},
    # With shorter blocks the transient of the first one outweighs the error.
    "ep_online": _PLAIN | {"algo": "online_hep", "n_phases": 4, "t_nudge": 60},
    "ep_homeo_exact": _HOMEO | {"homeo_draws": 0},
    "ep_kolen_pollack": _PLAIN | {"kp_decay": 0.005},
    "loop": _PLAIN | {"arch": "loop"},
    "loop_homeo": _HOMEO | {"arch": "loop"},
}
# Methods that train at all --angles; the others train at the first.
ANGLED = (CUSTOM, "ep", "ep_homeo", "bp")


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "hidden": (16, 12),
        "t_free": 12,
        "t_nudge": 6,
        "batch_size": 200,
        "epochs": 2,
        "log_every": 7,
        "checkpoint_every": 7,
    },
    "quick": {
        "compare": True,
        "num_seeds": 3,
        "angles": (90.0, 45.0, 0.0),
        "log_every": 28,
    },
    "paper": {
        "dataset": "fashion_mnist",
        "data_dir": "data",
        "num_seeds": 5,
        "hidden": (256, 256),
        "t_free": 150,
        "t_nudge": 20,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "epochs": 50,
        "log_every": 100,
        "checkpoint_every": 1200,
    },
    "cnn": {
        "dataset": "cifar10",
        "data_dir": "data",
        "num_seeds": 3,
        "arch": CNN,
        "act": "dsilu",
        "angles": (0.0,),
        "beta": 1.0,
        "t_free": 250,
        "t_nudge": 40,
        "homeo_coef": 15.0,
        "optimizer": "sgd_cos",
        "learning_rate": 7e-3,
        "weight_decay": 1e-4,
        "dtype": "float16",
        "epochs": 150,
        "batch_size": 256,
        "log_every": 39,
        "checkpoint_every": 975,
    },
    "cnn_quick": {
        "dataset": "cifar10",
        "data_dir": "data",
        "methods": ("ep", "ep_homeo", "bp"),
        "compare": True,
        "num_seeds": 1,
        "arch": CNN,
        "width_mult": 0.0625,
        "act": "dsilu",
        "angles": (0.0,),
        "beta": 1.0,
        "t_free": 30,
        "t_nudge": 10,
        "limit": 16_000,
        "epochs": 1,
        "batch_size": 16,
        "log_every": 10,
        "checkpoint_every": 100,
    },
}
PRESET_DOCS = {
    "smoke": "seconds; shows that everything runs",
    "quick": "minutes on 2 cores: eight methods, three seeds, on digits",
    "paper": "784-256-256-10 on FashionMNIST in --data_dir (default ./data), 50 epochs, 5 seeds",
    "cnn": "the convolutional network on CIFAR-10 in --data_dir, 150 epochs; wants a GPU",
    "cnn_quick": "that network at a sixteenth of its width, for 1000 steps, on 2 cores",
}


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Training, config.Data):
    """Settings of equilibrium propagation."""

    compared: ClassVar[Mapping[str, str]] = METHODS
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    method: str = config.field(
        "ep_homeo",
        "What to train; custom is what the flags below say, the others fix some of them.  Not in "
        "--compare: " + "; ".join(f"{name}, {told}" for name, told in FURTHER.items()) + ".",
        choices=tuple(RECIPES),
    )
    algo: str = config.field("hep", "Where gradients come from.", choices=tuple(ALGORITHMS))
    n_phases: int = config.field(
        0, "Nudges around the circle (N); 0 takes the exact derivative.", minimum=0
    )
    beta: float = config.field(0.05, "Radius of the nudges (N > 0).", minimum=1e-6)
    t_free: int = config.field(40, "Steps of the free phase (T1).", minimum=1)
    t_nudge: int = config.field(
        20, "Steps of a nudged phase, or of backpropagation (T2).", minimum=1
    )
    turns: int = config.field(2, "Turns of the nudge a batch (online_hep).", minimum=1)
    angles: tuple[float, ...] = config.field(
        (90.0,),
        "Angles of feedback to forward weights at the start, 0 symmetric, 90 independent; "
        "the first is the run's, ep, ep_homeo, bp and custom are trained at the others too.",
        minimum=0,
        maximum=90,
    )
    arch: str = config.field(
        "recip",
        "The network: reciprocal or looped feedback, or convolutions.",
        choices=(*MLPS, CNN),
    )
    hidden: tuple[int, ...] = config.field(
        (64, 64), "Units of the two hidden layers (recip, loop).", minimum=1
    )
    width_mult: float = config.field(
        1.0, "Factor of the channels 128, 256, 512, 512 (cnn).", minimum=1e-3
    )
    act: str = config.field(
        "sigmoid", "The activation; both are holomorphic.", choices=tuple(model.ACTIVATIONS)
    )
    loss: str = config.field(
        "xent",
        "Cross entropy of a readout, or squared error of the last layer.",
        choices=model.LOSSES,
    )
    homeo_coef: float = config.field(
        1.0, "Weight of the homeostatic loss; 0 turns it off.", minimum=0
    )
    homeo_draws: int = config.field(
        5, "Random probes of the Jacobian (K); 0 takes all of it, for small networks.", minimum=0
    )
    kp_decay: float = config.field(
        0.0,
        "Kolen-Pollack: above 0 both weights of a pair get the mean of their gradients and lose "
        "this share each step.",
        minimum=0,
        maximum=1,
    )
    optimizer: str = config.field(
        "adam",
        "Step rule; *_cos decay to 0, and with convolutions sgd_cos and adamw* have factors by "
        "layer.",
        choices=optimizers.NAMES,
    )
    learning_rate: float = config.field(1e-3, "Step size.", minimum=0)
    momentum: float = config.field(0.9, "Momentum of sgd and sgd_cos.", minimum=0, maximum=1)
    weight_decay: float = config.field(
        0.0, "Weight decay: added to the gradient (sgd*), or decoupled (adamw*).", minimum=0
    )
    epochs: int = config.field(15, "Passes through the training data.", minimum=1)
    batch_size: int = config.field(50, "Examples in a batch.", minimum=1)
    damping: float = config.field(
        1.0,
        "Share of the new state in each step; below 1 it ends orbits of period 2.",
        minimum=0.01,
        maximum=1,
    )
    reset: bool = config.field(
        True, "Start each batch from zero states instead of those of the batch before."
    )
    dtype: str = config.field(
        "float32",
        "Numbers of the free phase in training; all else is float32.",
        choices=("float32", "bfloat16", "float16"),
    )
    dataset: str = config.field(
        sources.DIGITS,
        "digits, teacher and images32 are bundled; the others are read from --data_dir "
        "(svhn_cropped is not in the paper).",
        choices=tuple(sources.SETS),
    )
    limit: int = config.field(0, "Training examples to use; 0 takes all.", minimum=0)

    def check(self) -> None:
        """Refuse what cannot run."""
        names = self.chosen(self.compared)
        for method in names:
            resolved(dataclasses.replace(self, method=method)).check_one()
        config.refuse_overridden(self, self.presets, RECIPES, names)

    def check_one(self) -> None:
        """Refuse settings of one method that contradict each other."""
        spec = sources.SETS[self.dataset]
        if spec.pictures != (self.arch == CNN):
            wanted = CNN if spec.pictures else " or ".join(MLPS)
            raise UserError(f"--dataset={self.dataset} needs --arch={wanted}, not {self.arch}")
        if spec.tfds and not self.data_dir:
            raise UserError(f"--dataset={self.dataset} needs --data_dir")
        if not spec.tfds and self.data_dir:
            raise UserError(f"--data_dir: --dataset={self.dataset} reads no folder")
        if len(self.hidden) != 2:
            raise UserError(f"--hidden: two layers are needed, not {len(self.hidden)}")
        if len(set(self.angles)) < max(1, len(self.angles)):
            raise UserError("--angles: give each angle once, and at least one")
        self._check_algorithm()

    def _check_algorithm(self) -> None:
        if self.n_phases and self.algo not in ("hep", "online_hep"):
            raise UserError(f"--n_phases={self.n_phases}: --algo={self.algo} has no nudges")
        if self.algo == "online_hep" and self.n_phases < 2:
            raise UserError("--algo=online_hep needs --n_phases of 2 or more")
        if self.algo == "online_hep" and not self.reset:
            raise UserError("--noreset: --algo=online_hep has no free states to keep")
        if self.algo == "online_hep" and self.dtype != "float32":
            raise UserError(f"--dtype={self.dtype}: --algo=online_hep has no free phase")
        if self.arch == "loop" and self.kp_decay:
            raise UserError("--kp_decay: --arch=loop has no reciprocal pair")
        if self.arch == "loop" and self.angles[0] != 90 and not self.compare:
            raise UserError("--angles: --arch=loop has no reciprocal pair, only 90 means something")
        if self.arch == CNN and self.loss == "mse":
            raise UserError("--loss=mse: --arch=cnn has no unit for each class in its last layer")
        if self.homeo_coef and not self.homeo_draws and self.arch == CNN:
            raise UserError("--homeo_draws=0: the Jacobian of --arch=cnn is too large")
        if self.homeo_coef and not self.homeo_draws and sum(self.hidden) >= MOST_UNITS:
            raise UserError(f"--homeo_draws=0 needs fewer than {MOST_UNITS} units")


def resolved(config: Any) -> Any:
    """The settings that a method trains with: those of the flags, and what it fixes itself.

    Args:
      config: The settings, with the method.

    Returns:
      Settings whose flags say it all.
    """
    return dataclasses.replace(config, **RECIPES[config.method])
