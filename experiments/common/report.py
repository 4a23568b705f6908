"""What a run leaves for people: results.json with its claims, a table, figures."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import seeds, terminal

REPOSITORY = Path(__file__).resolve().parents[2]
PARITY = "golden parity: worst deviation / tolerance over all recorded groups, float64"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of the paper, measured.

    Attributes:
      statement: What is claimed, with the number that the threshold refers to.
      measured: What this run measured; None where this run cannot measure it.
      threshold: What was demanded; None for a number that is only reported.
      relation: How measured must stand to threshold: ">=", "<=", ">" or "<".
      holds: The verdict; None where there is none to give.
      standard_error: Of the measured value over seeds, where it is a mean.
      note: Why it was not measured, or what a reader must know.
    """

    statement: str
    measured: float | None
    threshold: float | None = None
    relation: str = ">="
    holds: bool | None = None
    standard_error: float | None = None
    note: str = ""


_RELATIONS = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


def claim(statement: str, values: Any, relation: str, threshold: float, *, note: str = "") -> Claim:
    """Judge a mean over seeds against a threshold.

    Args:
      statement: What is claimed.
      values: One value a seed, or a single number.
      relation: ">=", "<=", ">" or "<".
      threshold: What is demanded of the mean.
      note: What a reader must know.

    Returns:
      The claim with its verdict; a measurement that is not finite does not hold.
    """
    measured = np.atleast_1d(np.asarray(values, dtype=np.float64))
    mean = float(measured.mean())
    error = seeds.summary(measured)["standard_error"] if measured.size > 1 else None
    holds = math.isfinite(mean) and bool(_RELATIONS[relation](mean, threshold))
    return Claim(statement, mean, threshold, relation, holds, error, note)


def report_only(statement: str, values: Any, *, note: str = "") -> Claim:
    """A number that the card asks to report without a demand.

    Args:
      statement: What the number is.
      values: One value a seed, or a single number.
      note: What a reader must know.

    Returns:
      A claim without a verdict.
    """
    measured = np.atleast_1d(np.asarray(values, dtype=np.float64))
    error = seeds.summary(measured)["standard_error"] if measured.size > 1 else None
    return Claim(statement, float(measured.mean()), None, "", None, error, note)


def not_measured(statement: str, why: str) -> Claim:
    """A claim that this run's settings cannot measure.

    Args:
      statement: What is claimed.
      why: What the run lacks.

    Returns:
      A claim without a value.
    """
    return Claim(statement, None, note=why)


def golden_parity(slug: str, preset: str) -> Claim:
    """Whether asym agrees with the recorded reference values, in float64, in a process of its own.

    Args:
      slug: The paper.
      preset: The run's preset; smoke, which takes seconds, leaves this to the others.

    Returns:
      The largest deviation over all groups in units of the group's tolerance, which must be <= 1;
      not measured outside a checkout, where the recorded values are absent.
    """
    statement = PARITY
    if preset == "smoke":
        return not_measured(statement, "left to the other presets and the tests")
    if not (REPOSITORY / "tests" / "golden" / "vectors" / f"{slug}.npz").exists():
        return not_measured(statement, "the recorded values are only in a checkout")
    terminal.say("comparing with the recorded reference values in float64")
    command = [sys.executable, "-m", "tests.golden.parity", slug, "--json"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        groups = json.loads(done.stdout)["groups"]
    except (ValueError, KeyError) as error:
        reason = (done.stderr.strip().splitlines() or [str(error)])[-1]
        return Claim(statement, None, 1.0, "<=", False, None, reason)
    broken = [group["function"] for group in groups if not group["accepted"]]
    note = f"{len(groups)} groups" + (f"; disagree: {', '.join(broken)}" if broken else "")
    worst = max(group["used"] for group in groups)
    return Claim(statement, worst, 1.0, "<=", not broken, None, note)


def environment() -> dict[str, Any]:
    """Versions and hardware, for results.json.

    Returns:
      JSON values.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "versions": versions,
        "device": _device_name(device),
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "cpu_cores": _usable_cores(),
    }


def _usable_cores() -> int | None:
    """Cores that this process may use: `taskset` can leave it fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not every system can say.
        return os.cpu_count()


def _device_name(device: jax.Device) -> str:
    if device.platform != "cpu":
        return device.device_kind
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"CPU ({model})"


def summarise(outcomes: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Mean and standard error of every metric of every method.

    Args:
      outcomes: Method to metric to one value a seed.

    Returns:
      The same nesting with `seeds.summary` at the leaves.
    """
    return {
        method: {name: seeds.summary(values) for name, values in metrics.items()}
        for method, metrics in outcomes.items()
    }


def number(mean: float | None, error: float | None = None) -> str:
    """A mean with its standard error, as people write it.

    Args:
      mean: The value; None prints as a dash.
      error: Its standard error, if known.

    Returns:
      For instance "0.905 ± 0.012".
    """
    if mean is None or not math.isfinite(mean):
        return "–"
    small = mean != 0 and abs(mean) < 1e-3
    text = f"{mean:.2e}" if small or abs(mean) >= 1e5 else f"{mean:.3f}"
    return text if error is None else f"{text} ± {error:.3f}"


def results_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of methods.

    Args:
      results: A results.json.

    Returns:
      The header and the rows: a line a method, a column a metric.
    """
    methods = results["methods"]
    names = list(dict.fromkeys(name for metrics in methods.values() for name in metrics))
    rows = [
        [method]
        + [
            number(metrics[n]["mean"], metrics[n]["standard_error"]) if n in metrics else "–"
            for n in names
        ]
        for method, metrics in methods.items()
    ]
    labels = results["labels"]
    return ["method", *(labels.get(n, n.replace("_", " ")) for n in names)], rows


def claim_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of claims.

    Args:
      results: A results.json.

    Returns:
      The header and the rows.
    """
    rows = []
    for c in results["claims"]:
        demand = f"{c['relation']} {c['threshold']:g}" if c["threshold"] is not None else "report"
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "reported"}[c["holds"]]
        if c["measured"] is None and c["holds"] is None:
            verdict = "not measured"
        statement = c["statement"] + (f" ({c['note']})" if c["note"] else "")
        rows.append([statement, demand, number(c["measured"], c["standard_error"]), verdict])
    return ["claim", "demanded", "measured", "verdict"], rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a README.

    Args:
      header: Column names.
      rows: Cells.

    Returns:
      GitHub Markdown.
    """
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n"


def show(results: Mapping[str, Any]) -> None:
    """Print both tables on the terminal.

    Args:
      results: A results.json.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 132)
    for title, (header, rows) in (
        (f"{results['title']}, {results['preset']} preset", results_rows(results)),
        ("Claims", claim_rows(results)),
    ):
        if not rows:
            continue
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(header):
            table.add_column(
                name,
                justify="left" if i == 0 else "right",
                overflow="fold",
                no_wrap=name == "method",
            )
        for row in rows:
            table.add_row(*row)
        console.print(table)
