r"""How long a person waits before anything happens: imports, ./run, the smoke preset.

    python benchmarks/startup.py --paper=asl --repeats=5

Medians over --repeats, each in a process of its own.  The cold smoke run starts with an empty
compilation cache, the warm one with the cache that it left.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What the project promises, in seconds; None where there is no promise.
LIMITS = {
    "import jax": None,
    "import asym, beyond jax": 1.5,
    "./run, beyond python -m": 1.0,
    "smoke preset, cold cache": 20.0,
    "smoke preset, warm cache": 8.0,
}


def seconds(command: list[str], **variables: str) -> float:
    """The wall-clock time of a command run from the repository's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    start = time.perf_counter()
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    elapsed = time.perf_counter() - start
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stderr[-2000:]}")
    return elapsed


def imports() -> tuple[float, float]:
    """The seconds of `import jax`, and of `import asym` once jax is loaded."""
    program = (
        "import time; a = time.perf_counter(); import jax, jax.numpy; b = time.perf_counter(); "
        "import asym; print(b - a, time.perf_counter() - b)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    jax, asym = answer.stdout.split()
    return float(jax), float(asym)


def run_overhead() -> float:
    """The seconds that ./run adds to `python -m experiments`, its environment being complete."""
    through = seconds(["./run"])
    python = str(ROOT / ".venv" / "bin" / "python")
    return through - seconds([python, "-m", "experiments"])


def smoke(paper: str) -> tuple[float, float]:
    """The seconds of the smoke preset with an empty compilation cache, then with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        module = f"experiments.{paper}.main"
        command = [sys.executable, "-m", module, "--preset=smoke"]
        cache = str(pathlib.Path(folder, "cache"))
        cold, warm = (
            seconds([*command, f"--workdir={folder}/{name}"], ASYM_CACHE_DIR=cache)
            for name in ("cold", "warm")
        )
    return cold, warm


def measure(paper: str, repeats: int, console: Console) -> dict[str, list[float]]:
    """Every duration, `repeats` times; the rounds interleave so that a busy spell hits all."""
    found: dict[str, list[float]] = {name: [] for name in LIMITS}
    steps: list[tuple[str, Callable[[], float | tuple[float, ...]], list[str]]] = [
        ("imports", imports, ["import jax", "import asym, beyond jax"]),
        ("./run", run_overhead, ["./run, beyond python -m"]),
        (
            f"{paper} smoke preset",
            lambda: smoke(paper),
            ["smoke preset, cold cache", "smoke preset, warm cache"],
        ),
    ]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        seconds(["./run"])  # makes the environment where there is none, and fills the file cache
        for repeat in range(repeats):
            for title, step, names in steps:
                progress.update(task, description=f"round {repeat + 1} of {repeats}: {title}")
                result = step()
                values = result if isinstance(result, tuple) else (result,)
                for name, value in zip(names, values, strict=True):
                    found[name].append(value)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paper", default="asl", help="the paper whose smoke preset runs")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each duration")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    if not (ROOT / "experiments" / arguments.paper / "main.py").is_file():
        parser.error(f"there is no paper '{arguments.paper}'")
    found = measure(arguments.paper, arguments.repeats, Console(stderr=True))
    table = Table(title=f"{arguments.paper}, {os.cpu_count()} cores, {arguments.repeats} rounds")
    for heading in ("what", "median s", "fastest s", "slowest s", "limit s", "holds"):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
    for name, limit in LIMITS.items():
        median = statistics.median(found[name])
        promise = ("", "") if limit is None else (f"{limit:.1f}", str(median < limit).lower())
        numbers = (median, min(found[name]), max(found[name]))
        table.add_row(name, *(f"{number:.3f}" for number in numbers), *promise)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
