"""Runs a paper's quick preset, for the claims' tests."""

import os
import subprocess
import sys

from experiments.common import files, report


def run(slug, workdir):
    """The results.json of the quick preset at full size."""
    # In a process of its own: this one compiles without optimisations, which trains several times
    # slower, for one thread (tests/conftest.py).
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_backend_optimization_level=0", "")
    others = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{slug}.main", f"--workdir={workdir}"],
        cwd=report.REPOSITORY,
        env=others | {"XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return files.read_json(workdir / "results.json")


def judged(results):
    """The claims that have a verdict to give."""
    return [c for c in results["claims"] if c["threshold"] is not None]


def broken(results):
    """What does not hold, each with its numbers."""
    return [
        f"{c['statement']}: {c['measured']}, not {c['relation']} {c['threshold']:g} {c['note']}"
        for c in judged(results)
        if c["holds"] is not True
    ]
