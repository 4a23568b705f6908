"""Settings, presets and methods of the causal-bandits binary."""

import dataclasses
from typing import Any

from experiments.causal_bandits import bandit
from experiments.common import config
from experiments.common.errors import UserError

METHODS = {
    "csl_ucb": "the paper's method: asymmetric graph learning, upper-confidence selection",
    "vanilla_ucb": "each of the 2^N actions by itself",
    "linsem_ts": "Thompson sampling that is told the parents",
    "golem_mab": "graphs by GOLEM from 2 x --continuous_samples samples, then greedy",
    "notears_greedy": "the same with NOTEARS",
    "csl_symmetric": "csl_ucb without the log-weight term (w = 0): must miss edges",
    "csl_greedy": "csl_ucb without its width",
    "csl_theorem": "csl_ucb with the theorem's width",
    "csl_restart": "csl_ucb that learns everything anew after a change (non-stationary setting)",
    "csl_blind": "csl_ucb that does not look for changes (non-stationary setting)",
}
# What the ablations set; the flags of the same names set it for csl_ucb.
RECIPES: dict[str, dict[str, Any]] = {
    "csl_symmetric": {"mi_weight": 0.0},
    "csl_greedy": {"explore": "greedy"},
    "csl_theorem": {"width": "theorem"},
    "csl_restart": {"change_mode": "global"},
    "csl_blind": {"change_mode": "none"},
}
# Methods whose stationary run and graphs are those of csl_ucb.
ONLY_CHANGING = ("csl_restart", "csl_blind")
CONTINUOUS = {"golem_mab": "golem", "notears_greedy": "notears"}
# Methods that learn graphs, each in its own way.
LEARNERS = ("csl_ucb", "csl_symmetric", *CONTINUOUS)
_CSL = ("mi_weight", "n_max", "change_mode", "width", "explore")
_DESCENT = ("continuous_samples", "continuous_steps")


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Data):
    """Settings of the causal-bandits binary; a seed is an instance, a random system of its own."""

    method: str = config.field("csl_ucb", "What to play.", choices=tuple(METHODS))
    num_nodes: int = config.field(6, "Nodes N; there are 2^N actions.", minimum=2, maximum=12)
    horizon: int = config.field(
        1000, f"Steps T, a multiple of {bandit.BIN}.", minimum=2 * bandit.BIN
    )
    nonstationary: bool = config.field(
        False, "Measure the non-stationary setting too, where the same systems change."
    )
    change_times: tuple[int, ...] = config.field(
        (400, 700), "Steps at which the graph changes.", minimum=1
    )
    changed_columns: int = config.field(
        2, "Columns drawn, with replacement, in each change.", minimum=1
    )
    change_mode: str = config.field(
        "column",
        "After a change csl_ucb learns the changed columns anew, or all, or does not look.",
        choices=("column", "global", "none"),
    )
    mi_weight: float = config.field(
        1.0, "Weight w of the log-weight in the removal score; 0 is the symmetric rule.", minimum=0
    )
    n_max: int = config.field(100, "The first so many samples of a column are used.", minimum=20)
    width: str = config.field(
        "code", "Width by the authors' code or by the theorem.", choices=("code", "theorem")
    )
    explore: str = config.field(
        "ucb", "Add the width to the mean, or not.", choices=("ucb", "greedy")
    )
    continuous_samples: int = config.field(
        300, "Samples for each of the two graphs (golem_mab, notears_greedy).", minimum=2
    )
    continuous_steps: int = config.field(
        100_000, "Steps of Adam a graph (golem_mab, notears_greedy).", minimum=10
    )
    sample_sizes: tuple[int, ...] = config.field(
        (20, 40, 60, 80, 120, 160, 240, 480),
        "Numbers of samples at which errors of the graphs are measured, rising.",
        minimum=4,
    )
    lanes: int = config.field(
        2,
        "Instances whose graphs are learnt side by side; more suit an accelerator.",
        minimum=1,
        identity=False,
    )

    def check(self) -> None:
        """Refuse what cannot run or would do nothing."""
        if self.horizon % bandit.BIN:
            raise UserError(f"--horizon={self.horizon}: must be a multiple of {bandit.BIN}")
        sizes, times = self.sample_sizes, self.change_times
        if not sizes or list(sizes) != sorted(set(sizes)):
            raise UserError(f"--sample_sizes={','.join(map(str, sizes))}: must rise")
        if self.nonstationary:
            if not times or list(times) != sorted(set(times)) or times[-1] >= self.horizon:
                raise UserError(
                    f"--change_times={','.join(map(str, times))}: must rise and be below "
                    f"--horizon={self.horizon}"
                )
            if self.data_dir:
                raise UserError("--nonstationary changes drawn systems, not one of --data_dir")
        for name in ("change_times", "changed_columns", "change_mode"):
            if not self.nonstationary and self._set(name):
                raise UserError(f"--{name}: needs --nonstationary")
        if not self.compare:
            self._check_method()

    def _check_method(self) -> None:
        if self.method in ONLY_CHANGING and not self.nonstationary:
            raise UserError(f"--method={self.method}: needs --nonstationary")
        useless = set(RECIPES.get(self.method, ()))
        if not self.method.startswith("csl_"):
            useless |= set(_CSL)
        if self.method not in CONTINUOUS:
            useless |= set(_DESCENT)
        if self.method not in LEARNERS:
            useless.add("sample_sizes")
        for name in sorted(useless):
            if self._set(name):
                raise UserError(f"--{name}: --method={self.method} does not use it")

    def _set(self, name: str) -> bool:
        """Whether a setting differs from its preset's value."""
        return name in config.changed(self, PRESETS)


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "num_nodes": 3,
        "horizon": 300,
        "num_seeds": 2,
        "change_times": (250,),
        "changed_columns": 1,
        "continuous_samples": 40,
        "continuous_steps": 200,
        "sample_sizes": (20, 160),
    },
    "quick": {
        "compare": True,
        "nonstationary": True,
        "num_seeds": 20,
        "continuous_steps": 10_000,
    },
    "paper": {
        "compare": True,
        "nonstationary": True,
        "num_nodes": 10,
        "horizon": 1500,
        "num_seeds": 100,
        "seed": 2025,
        "change_times": (500, 1000),
        "sample_sizes": (30, 60, 120, 240, 480, 600),
    },
}
