r"""How fast the quadrotor simulator is: steps a second and months of flight a second.

    python benchmarks/simulator.py --batch=8192
    taskset -c 0 python benchmarks/simulator.py            (one core)
    python benchmarks/simulator.py --mjx                   (MuJoCo's twin)

The authors' kernel (13 numbers, Runge-Kutta, no output) by each simulator, and the full training
step (rotor delay, history, reward, termination, reset) without and with both observations, in
turns. The last column is the share of a matrix product's arithmetic in the same minutes.
"""

import argparse
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.common import app
from experiments.learning_to_fly import main, speed

SIDE = 2048


def product_rate() -> float:
    """Operations a second of a large matrix product."""
    a = jnp.ones((SIDE, SIDE))
    program = jax.jit(lambda a: a @ a)
    jax.block_until_ready(program(a))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(program(a))
        best = min(best, time.perf_counter() - started)
    return 2 * SIDE**3 / best


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[8192], help="vehicles")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mjx", action="store_true", help="time MuJoCo's twin, and nothing else")
    arguments = parser.parse_args()
    if not arguments.mjx:
        # With these options MuJoCo's program does not compile.
        app.prepare(main.EXPERIMENT, main.EXPERIMENT.settings())
    platform = jax.default_backend()
    table = Table("vehicles", "what", "million steps/s", "months/s", "GFLOP/s", "of a product")
    for batch in arguments.batch:
        made = {
            name: (steps, *make())
            for name, (steps, make) in speed.programs(batch=batch, platform=platform).items()
            if ("mjx" in name) == arguments.mjx
        }
        best = dict.fromkeys(made, 0.0)
        arithmetic = 0.0
        states = {name: state for name, (_, _, state) in made.items()}
        for turn in track(range(arguments.repeats + 1), f"timing {batch} vehicles"):
            arithmetic = max(arithmetic, product_rate())
            for name, (steps, program, _) in made.items():
                started = time.perf_counter()
                states[name] = jax.block_until_ready(program(states[name]))
                # The first turn compiles.
                if turn:
                    rate = steps * batch / (time.perf_counter() - started)
                    best[name] = max(best[name], rate)
        for name, rate in best.items():
            flops, share = "", ""
            # The authors counted the operations of their kernel.
            if name in ("kernel, rk4_soa", "kernel, rk4_aos"):
                flops = f"{rate * speed.FLOPS_PER_STEP / 1e9:.1f}"
                share = f"{rate * speed.FLOPS_PER_STEP / arithmetic:.2f}"
            months = f"{speed.months_per_second(rate):.4f}"
            table.add_row(str(batch), name, f"{rate / 1e6:.2f}", months, flops, share)
    Console().print(table)
    print(
        f"{jax.devices()[0].device_kind}; a {SIDE} x {SIDE} product: {arithmetic / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    run()
