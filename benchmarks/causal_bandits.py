r"""What one program for all instances saves over one instance at a time.

    python benchmarks/causal_bandits.py --instances 10 --lanes 1 2 5 10

Plays CSL-UCB at the quick preset's sizes, compiled beforehand, in turns: all instances in one
program with so many of them side by side where graphs are learnt, and the same instances one after
the other, each in a dispatch of its own. Judge the ratios.
"""

import argparse
import time

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.causal_bandits import bandit, csl, main
from experiments.common import seeds, terminal


class Player:
    """CSL-UCB on the first instances of the quick preset."""

    def __init__(self, instances: int, lanes: int, *, together: bool) -> None:
        self.config = main.EXPERIMENT.settings("quick", method="csl_ucb", nonstationary=False)
        self.keys = seeds.keys(0, instances)
        self.phases = main.draw_phases(self.config, self.keys)
        self.agent = csl.agent(
            csl.Shape(self.config.num_nodes, self.config.horizon, self.config.n_max, lanes)
        )
        _, self.options = main.make_agent(self.config, changing=False)
        size = instances if together else 1
        self.groups = [slice(i, i + size) for i in range(0, instances, size)]
        self.play(self.groups[0])

    def play(self, group: slice) -> None:
        """Plays some instances."""
        bandit.play(
            self.agent,
            jax.tree.map(lambda leaf: leaf[group], self.phases),
            self.keys[group],
            times=(),
            horizon=self.config.horizon,
            description="",
            options=self.options,
        )

    def seconds(self) -> float:
        """Seconds for all instances."""
        start = time.perf_counter()
        for group in self.groups:
            self.play(group)
        return time.perf_counter() - start


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--repeats", type=int, default=3)
    words = parser.parse_args()
    terminal.silence()
    # As in the binary: least squares by normal equations.
    with jax.enable_x64(True):
        players = {
            "one at a time": Player(words.instances, 1, together=False),
            **{
                f"one program, {lanes} lanes": Player(words.instances, lanes, together=True)
                for lanes in track(words.lanes, "compiling")
            },
        }
        best = dict.fromkeys(players, float("inf"))
        for _ in track(range(words.repeats), "timing"):
            for name, player in players.items():
                # The fastest repeat is the one that the rest of the machine disturbed least.
                best[name] = min(best[name], player.seconds())
    table = Table("how", "seconds", "instances/s", "relative to one at a time")
    base = best["one at a time"]
    for name, seconds in best.items():
        rate = words.instances / seconds
        table.add_row(name, f"{seconds:.2f}", f"{rate:.2f}", f"{seconds / base:.2f}")
    Console().print(str(jax.devices()[0]), table)


if __name__ == "__main__":
    run()
