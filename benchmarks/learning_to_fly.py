r"""Wall-clock time of learning to fly: the paper's schedule, and the time to a score.

    python benchmarks/learning_to_fly.py                    (the schedule, one seed)
    python benchmarks/learning_to_fly.py --score=400        (td3 and bptt until they fly that long)

Compilation, evaluation and files are not timed: the paper's 18 s are those of its training loop.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments.common import app, loop, mesh, seeds
from experiments.learning_to_fly import bptt, evaluation, flight, main, settings, td3

PAPER_SECONDS = 18.0
CHUNK = {"td3": 500, "bptt": 10}


class Trainer:
    """The compiled loop of one algorithm, with a clock."""

    def __init__(self, algo: str, num_seeds: int, **explicit: Any) -> None:
        built = main.EXPERIMENT.settings("paper", method=algo, num_seeds=num_seeds, **explicit)
        config = settings.resolved(built)
        self.learner: Any = (td3 if algo == "td3" else bptt).Learner(config, flight.Task())
        self.total = self.learner.schedule.blocks if algo == "td3" else config.bptt_updates
        self.keys = seeds.keys(0, num_seeds)
        # The loop's own program, without files and progress around it.
        self._program = loop._Program(
            self.learner.step,
            self.learner.init,
            loop.Resident((), lambda data, key, step: step),
            None,
            mesh.make(),
            self.keys,
            CHUNK[algo],
            False,
        )
        self._chunk = CHUNK[algo]
        self._algo = algo
        # Compiled by a dispatch of no steps.
        self.state = self._program.dispatch(self._program.initial(), None, 0, 0)[0]
        jax.block_until_ready(self.state)
        self.done, self.seconds = 0, 0.0

    @property
    def actors(self) -> Any:
        """Parameters of the policies, with a leading axis of seeds."""
        return self.state.actor if self._algo == "bptt" else self.state.networks.actor

    def advance(self) -> None:
        """One dispatch."""
        last = min(self.done + self._chunk, self.total)
        started = time.perf_counter()
        self.state, _ = self._program.dispatch(self.state, None, self.done, last)
        jax.block_until_ready(self.state)
        self.seconds += time.perf_counter() - started
        self.done = last


def schedule(num_seeds: int) -> None:
    trainer = Trainer("td3", num_seeds)
    with Progress() as bar:
        task = bar.add_task("training", total=trainer.total)
        while trainer.done < trainer.total:
            trainer.advance()
            bar.update(task, completed=trainer.done)
    table = Table("seeds", "seconds", "seconds a seed", f"of the paper's {PAPER_SECONDS:g} s")
    each = trainer.seconds / num_seeds
    table.add_row(
        str(num_seeds), f"{trainer.seconds:.1f}", f"{each:.1f}", f"{each / PAPER_SECONDS:.2f}"
    )
    Console().print(table)


def until(score: float, episodes: int, explicit: dict[str, Any]) -> None:
    table = Table("algo", "seconds of training", "episode length", "updates")
    for algo in ("bptt", "td3"):
        trainer = Trainer(algo, 1, **(explicit if algo == "bptt" else {}))
        task = evaluation.task_of(32)
        learner = trainer.learner
        fly = jax.jit(
            lambda params, key, learner=learner, task=task: evaluation.fly(
                learner.actor, params, task, key, episodes=episodes
            ).length.mean()
        )
        key = jax.random.key(1)
        length = 0.0
        with Progress() as bar:
            row = bar.add_task(algo, total=trainer.total)
            while trainer.done < trainer.total and length < score:
                trainer.advance()
                first = jax.tree.map(lambda x: x[0], trainer.actors)
                length = float(np.asarray(fly(first, key)))
                bar.update(row, completed=trainer.done, description=f"{algo}: {length:.0f}")
        told = f"{trainer.seconds:.2f}" + ("" if length >= score else " (not reached)")
        table.add_row(algo, told, f"{length:.0f}", str(trainer.done))
    Console().print(table)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--score", type=float, default=0.0, help="mean steps of an episode")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--bptt_envs", type=int, default=64)
    parser.add_argument("--bptt_updates", type=int, default=400)
    arguments = parser.parse_args()
    app.prepare(main.EXPERIMENT, main.EXPERIMENT.settings())
    if arguments.score:
        explicit = {
            "bptt_envs": arguments.bptt_envs,
            "bptt_updates": arguments.bptt_updates,
        }
        until(arguments.score, arguments.episodes, explicit)
    else:
        schedule(arguments.seeds)


if __name__ == "__main__":
    run()
