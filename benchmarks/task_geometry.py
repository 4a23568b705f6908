r"""How fast networks train as axes of one program, and what more of them cost.

    python benchmarks/task_geometry.py --seeds 1 2 5

Times dispatches of the quick preset's compiled loop (nine tasks, thirteen nonlinearities, and so
many seeds), after the first one, in turns: one seed count, the next, and again, so that a busy
machine disturbs all alike. Judge the ratios.
"""

import argparse
import time

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.common import loop, mesh, seeds
from experiments.task_geometry import main

STEPS = 20


class Trainer:
    """The compiled loop of one seed count."""

    def __init__(self, num_seeds: int, method: str) -> None:
        chosen = {"method": method} if method else {}
        config = main.EXPERIMENT.settings("quick", num_seeds=num_seeds, **chosen)
        source, learner, _ = main.prepare(config)
        self.networks = num_seeds * len(source.cells) * len(config.names)
        # The loop's own program, without files and progress around it.
        self._program = loop._Program(
            learner.step,
            learner.init,
            source.batches,
            None,
            mesh.make(),
            seeds.keys(0, num_seeds),
            STEPS,
            False,
            source.tasks,
        )
        self._state = self._program.initial()
        self.seconds()

    def seconds(self) -> float:
        """Seconds of one dispatch."""
        start = time.perf_counter()
        self._state, _ = self._program.dispatch(self._state, None, 0, STEPS)
        jax.block_until_ready(self._state)
        return time.perf_counter() - start


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 5])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--method", default="", help="one nonlinearity instead of all")
    arguments = parser.parse_args()
    trainers = {n: Trainer(n, arguments.method) for n in track(arguments.seeds, "compiling")}
    best = dict.fromkeys(trainers, float("inf"))
    for _ in track(range(arguments.repeats), "timing"):
        for count, trainer in trainers.items():
            # The fastest repeat is the one that the rest of the machine disturbed least.
            best[count] = min(best[count], trainer.seconds() / STEPS)
    table = Table("seeds", "networks", "ms a step", "us a step and network")
    for count, step in best.items():
        networks = trainers[count].networks
        table.add_row(
            str(count), str(networks), f"{1e3 * step:.1f}", f"{1e6 * step / networks:.0f}"
        )
    Console().print(str(jax.devices()[0]), table)


if __name__ == "__main__":
    run()
