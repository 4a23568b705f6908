r"""How fast ASL trains, and what more seeds cost.

    python benchmarks/asl.py --seeds 1 3 5

The slope between a short and a long run of the quick preset's training, so that start, compilation
and the last checkpoint do not count. Ratios in one run: the machine may be shared.
"""

import argparse
import pathlib
import tempfile
import time

import jax
from rich.console import Console
from rich.table import Table

from experiments.asl import main, sources, training
from experiments.common import app, mesh, seeds

SHORT, LONG = 50, 250


def seconds(num_seeds: int, steps: int) -> float:
    """Wall-clock seconds of one training."""
    config = main.EXPERIMENT.settings(
        "quick", num_seeds=num_seeds, steps=steps, checkpoint_every=LONG, method="asl"
    )
    keys = seeds.keys(0, num_seeds)
    source = sources.open_source(config, config.w_nr, keys)
    jax.block_until_ready(source.batches.data)
    learner = training.Learner(config, "asl", source.num_classes)
    with tempfile.TemporaryDirectory() as folder:
        run = app.Run(pathlib.Path(folder), mesh.make(), keys)
        start = time.perf_counter()
        jax.block_until_ready(main.fit(learner, source, config, keys, run, "train").state)
        return time.perf_counter() - start


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    table = Table("seeds", "ms a step", "steps/s x seeds", "cost of the seeds / cost of one")
    one = None
    for count in arguments.seeds:
        slopes = []
        for _ in range(arguments.repeats):
            slopes.append((seconds(count, LONG) - seconds(count, SHORT)) / (LONG - SHORT))
        # The fastest repeat is the one that the rest of the machine disturbed least.
        best = min(slopes)
        one = one or best / count
        table.add_row(str(count), f"{1e3 * best:.1f}", f"{count / best:.0f}", f"{best / one:.2f} x")
    Console().print(jax.devices()[0], table)


if __name__ == "__main__":
    run()
