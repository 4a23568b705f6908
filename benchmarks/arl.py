r"""How fast ARL trains, what more seeds cost, and what bounds it.

    python benchmarks/arl.py --seeds 1 10

Times dispatches of the quick preset's compiled training loop, after its first one, in turns: one
method and seed count, the next, and again, so that a busy machine disturbs all alike. XLA's count
of the operations of a step is set against the throughput of a step's largest product.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import timing
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.arl import main, sources, training
from experiments.common import loop, mesh, seeds

STEPS = 50
# Pixels of a digit, and units of the encoder's last layer.
_HIDDEN = 64


class Trainer(timing.Dispatches):
    """The compiled loop of one method and seed count."""

    def __init__(self, method: str, num_seeds: int) -> None:
        config = main.EXPERIMENT.settings("quick", method=method, num_seeds=num_seeds)
        keys = seeds.keys(0, num_seeds)
        source = sources.open_source(config, keys)
        learner = training.Learner(config, source)
        program = loop._Program(
            learner.step, learner.init, source.batches, None, mesh.make(), keys, STEPS, False
        )
        self.operations = self._counted(learner, source)
        super().__init__(program, STEPS)

    def _counted(self, learner: training.Learner, source: sources.Source) -> float:
        """Operations of a step of one seed."""
        data: Any = jax.device_put(source.batches.data)
        one = jax.tree.map(lambda x: x[0], data) if source.per_seed else data
        batch = source.batches.sample(one, jax.random.key(0), jnp.int32(0))
        state = jax.jit(learner.init)(jax.random.key(0))
        compiled = loop.once(learner.step).lower(state, batch, jax.random.key(0)).compile()
        return float(compiled.cost_analysis()["flops"])


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["joint", "arl"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--repeats", type=int, default=12)
    words = parser.parse_args()
    chosen = [(method, count) for method in words.methods for count in words.seeds]
    trainers = {pair: Trainer(*pair) for pair in track(chosen, "compiling")}
    product = timing.Product(main.EXPERIMENT.settings("quick").batch_size, _HIDDEN)
    best: dict[Any, float] = {}
    speed = 0.0
    for _ in track(range(words.repeats), "timing"):
        speed = max(speed, product.throughput())
        for pair, trainer in trainers.items():
            # The fastest repeat is the one that the rest of the machine disturbed least.
            best[pair] = min(best.get(pair, float("inf")), trainer.seconds() / STEPS)
    table = Table("method", "seeds", "us a step", "seeds x steps/s", "MFLOP a seed", "of product")
    for (method, count), step in best.items():
        operations = trainers[method, count].operations
        share = count * operations / step / speed
        table.add_row(
            method,
            str(count),
            f"{1e6 * step:.0f}",
            f"{count / step:.0f}",
            f"{operations / 1e6:.2f}",
            f"{share:.0%}",
        )
    Console().print(str(jax.devices()[0]), table)
    Console().print(f"the product: {speed / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    run()
