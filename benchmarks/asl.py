r"""How fast ASL trains, and what more seeds cost.

    python benchmarks/asl.py --seeds 1 3 5

Times dispatches of the quick preset's compiled training loop, after its first one, in turns: one
seed count, the next, and again, so that a busy machine disturbs all alike. Judge the ratios.
"""

import argparse

import jax
import timing
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.asl import main, sources, training
from experiments.common import loop, mesh, seeds

STEPS = 25


class Trainer(timing.Dispatches):
    """The compiled loop of one seed count."""

    def __init__(self, num_seeds: int) -> None:
        config = main.EXPERIMENT.settings("quick", num_seeds=num_seeds)
        keys = seeds.keys(0, num_seeds)
        source = sources.open_source(config, config.w_nr, keys)
        learner = training.Learner(config, "asl", source.num_classes)
        program = loop._Program(
            learner.step, learner.init, source.batches, None, mesh.make(), keys, STEPS, False
        )
        super().__init__(program, STEPS)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--repeats", type=int, default=12)
    arguments = parser.parse_args()
    trainers = {count: Trainer(count) for count in track(arguments.seeds, "compiling")}
    best = dict.fromkeys(trainers, float("inf"))
    for _ in track(range(arguments.repeats), "timing"):
        for count, trainer in trainers.items():
            # The fastest repeat is the one that the rest of the machine disturbed least.
            best[count] = min(best[count], trainer.seconds() / STEPS)
    base = min(trainers)
    table = Table("seeds", "ms a step", "seeds x steps/s", f"cost per seed / cost with {base}")
    for count, step in best.items():
        ratio = step / count / (best[base] / base)
        table.add_row(str(count), f"{1e3 * step:.1f}", f"{count / step:.0f}", f"{ratio:.2f}")
    Console().print(str(jax.devices()[0]), table)


if __name__ == "__main__":
    run()
