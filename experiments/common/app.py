"""The frame of every binary's main: flags, working folder, lock, resume, errors, report.

    EXPERIMENT = app.Experiment(slug="asl", ..., config=Config, presets=PRESETS, measure=measure)

    if __name__ == "__main__":
        app.main(EXPERIMENT)

Exit codes: 0 done; 1 a defect of ours (traceback); 2 something the user can mend (one line);
130 stopped by SIGTERM or Ctrl-C after saving.
"""

import dataclasses
import fcntl
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import config as settings
from experiments.common import files, mesh, report, terminal
from experiments.common.errors import Interrupted, UserError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one method measured.

    Attributes:
      metrics: Name to one value a seed, shape (num_seeds,).
      arrays: Name to array: what figures and claims need besides.
    """

    metrics: Mapping[str, np.ndarray]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """One invocation of a binary.

    Attributes:
      workdir: Its folder.
      devices: The devices that share each batch.
      seed_keys: One key a seed, shape (num_seeds,).
    """

    workdir: Path
    devices: jax.sharding.Mesh
    seed_keys: jax.Array

    def folder(self, name: str) -> Path:
        """A folder of this run, for instance of one training that several methods share.

        Args:
          name: Its name.

        Returns:
          The path; whoever writes makes it.
        """
        return self.workdir / name


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A binary: what it is called, how it is configured, and three functions.

    Attributes:
      slug: Folder name.
      title: The paper's title.
      citation: Authors, venue, year.
      about: What the binary shows, for `--help`.
      config: The settings' dataclass.
      presets: Preset name to values.
      preset_docs: Preset name to one line.
      methods: Method name to one line; empty where there is nothing to choose.
      measure: Settings of one method and the run, to its outcome. It may train, or not.
      claims: Settings and the outcomes by method, to the paper's claims.
      figures: Settings, outcomes, the run's folder and the folder of figures; writes the figures.
      labels: Metric name to its column's title, where the name is not title enough.
      examples: Command lines for `--help`.
      program: What starts the binary, where it is not `./run <slug>`.
      xla_flags: Options of the compiler for the whole process, or a function of the settings that
        gives them. Those in the variable XLA_FLAGS win. Those that `jax.jit` takes as
        `compiler_options` belong there instead.
      cpu_threads: Threads that share the operations of one program on a CPU; 0 is one a core. Where
        operations are small, one thread is faster than several that wait for each other.
    """

    slug: str
    title: str
    citation: str
    about: str
    config: type[settings.Common]
    presets: Mapping[str, Mapping[str, Any]]
    preset_docs: Mapping[str, str]
    measure: Callable[[Any, Run], Outcome]
    claims: Callable[[Any, Mapping[str, Outcome]], Sequence[report.Claim]]
    figures: Callable[[Any, Mapping[str, Outcome], Path, Path], None]
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    examples: Sequence[str] = ()
    program: str = ""
    xla_flags: Sequence[str] | Callable[[Any], Sequence[str]] = ()
    cpu_threads: int = 0

    @property
    def command(self) -> str:
        """What a person types to run it."""
        return self.program or f"./run {self.slug}"

    def settings(self, preset: str = "quick", **explicit: Any) -> Any:
        """The checked settings of a preset, for notebooks and tests.

        Args:
          preset: Which preset.
          **explicit: Values that win over the preset.

        Returns:
          An instance of `config`.
        """
        return settings.build(self.config, self.presets, preset, **explicit)


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Run a binary and exit the process.

    Args:
      experiment: The binary.
      argv: The command line with the program's name first; sys.argv by default.
    """
    sys.exit(run(experiment, sys.argv if argv is None else argv))


def run(experiment: Experiment, argv: Sequence[str]) -> int:
    """Run a binary.

    Args:
      experiment: The binary.
      argv: The command line with the program's name first.

    Returns:
      The exit code; an unexpected error is raised instead, and so exits with 1.
    """
    if any(word in ("--help", "-h", "-help", "--helpfull", "-?") for word in argv[1:]):
        print(_help(experiment))
        return 0
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        execute(experiment, settings.parse(experiment.config, experiment.presets, argv))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(str(stopped), file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def execute(experiment: Experiment, config: Any) -> dict[str, Any]:
    """Run, resume or show a run.

    Args:
      experiment: The binary.
      config: Its settings.

    Returns:
      The content of results.json.

    Raises:
      UserError: Something the user can mend.
      Interrupted: A signal; the state has been saved.
    """
    prepare(experiment, config)
    methods = config.chosen(experiment.methods) if experiment.methods else [""]
    if isinstance(config, settings.Training):
        mesh.join(
            coordinator=config.coordinator,
            num_processes=config.num_processes,
            process_id=config.process_id,
        )
    if jax.process_index() != 0:
        terminal.silence()
    _keep_compiled_programs()
    workdir = _workdir(experiment, config)
    with _Lock(workdir, overwrite=config.overwrite):
        _claim_folder(workdir, config)
        results = workdir / "results.json"
        if results.exists():
            terminal.say(f"{workdir} is complete; --overwrite runs it again")
            stored = files.read_json(results)
        else:
            stored = _measure_all(experiment, config, workdir, methods)
        if jax.process_index() == 0:
            report.show(stored)
            terminal.say(f"results and figures: {workdir}")
    return stored


def _measure_all(
    experiment: Experiment, config: Any, workdir: Path, methods: Sequence[str]
) -> dict[str, Any]:
    # Imported here: keys touch the device, which must come after mesh.join.
    from experiments.common import seeds

    run = Run(
        workdir=workdir,
        devices=mesh.make(getattr(config, "num_devices", 0)),
        seed_keys=seeds.keys(config.seed, config.num_seeds),
    )
    seconds = (
        files.read_json(workdir / "seconds.json") if (workdir / "seconds.json").exists() else {}
    )
    outcomes = {}
    for method in methods:
        stored = workdir / "outcomes" / f"{method or 'result'}.npz"
        if not stored.exists():
            terminal.say(f"{experiment.slug}: {method}" if method else experiment.slug)
            chosen = dataclasses.replace(config, method=method) if method else config
            started = time.monotonic()
            outcome = experiment.measure(chosen, run)
            seconds[method or "result"] = time.monotonic() - started
            _store(stored, outcome)
            if jax.process_index() == 0:
                files.write_json(workdir / "seconds.json", seconds)
        outcomes[method or "result"] = _load(stored) if stored.exists() else outcome
    claims = list(experiment.claims(config, outcomes))
    if jax.process_index() == 0:
        (workdir / "figures").mkdir(exist_ok=True)
        experiment.figures(config, outcomes, workdir, workdir / "figures")
    results = {
        "slug": experiment.slug,
        "title": experiment.title,
        "citation": experiment.citation,
        "preset": config.preset,
        "command": _command(experiment, config),
        "config": settings.identity(config),
        **report.environment(),
        "wall_seconds": sum(seconds.values()),
        "seconds": seconds,
        "seeds": list(range(config.seed, config.seed + config.num_seeds)),
        "labels": dict(experiment.labels),
        "methods": report.summarise({m: o.metrics for m, o in outcomes.items()}),
        "claims": [dataclasses.asdict(c) for c in claims],
        "figures": sorted(p.name for p in (workdir / "figures").glob("*")),
    }
    if jax.process_index() == 0:
        files.write_json(workdir / "results.json", results)
    return results


def _store(path: Path, outcome: Outcome) -> None:
    if jax.process_index() != 0:
        return
    arrays = {f"metrics/{k}": np.asarray(v, dtype=np.float64) for k, v in outcome.metrics.items()}
    files.write_arrays(path, arrays | {f"arrays/{k}": v for k, v in outcome.arrays.items()})


def _load(path: Path) -> Outcome:
    stored = files.read_arrays(path)

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}

    return Outcome(part("metrics/"), part("arrays/"))


def _command(experiment: Experiment, config: Any) -> str:
    base = experiment.settings(config.preset)
    words = experiment.command.split()
    words += [f"--preset={config.preset}"] if config.preset != "quick" else []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata["identity"] and value != getattr(base, f.name):
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{f.name}={shown}")
    return shlex.join(words)


def _workdir(experiment: Experiment, config: Any) -> Path:
    if config.workdir:
        return Path(config.workdir).expanduser().absolute()
    base = experiment.settings(config.preset)
    name = config.preset + settings.suffix(config, base)
    return Path.cwd() / "runs" / experiment.slug / name


def _claim_folder(workdir: Path, config: Any) -> None:
    """Make sure that the folder holds this very run, or nothing."""
    if jax.process_index() != 0:
        return
    path = workdir / "config.json"
    wanted = settings.identity(config)
    if path.exists():
        found = files.read_json(path)
        if found != wanted:
            differing = [
                k for k in wanted if not isinstance(found, dict) or found.get(k) != wanted[k]
            ]
            raise UserError(
                f"{workdir} holds a run with other settings ({', '.join(differing)}); "
                f"choose another --workdir, or --overwrite"
            )
        return
    strangers = [p.name for p in workdir.iterdir() if p.name != _Lock.NAME]
    if strangers:
        raise UserError(
            f"{workdir} holds {strangers[0]}, which is not a run of this binary; "
            f"choose another --workdir"
        )
    files.write_json(path, wanted)


class _Lock:
    """Keeps a second run out of a folder; the system frees it when the process ends."""

    NAME = ".lock"

    def __init__(self, workdir: Path, *, overwrite: bool) -> None:
        self._workdir = workdir
        self._overwrite = overwrite

    def __enter__(self) -> None:
        if jax.process_index() != 0:
            return
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = (self._workdir / self.NAME).open("a")
        except OSError as error:
            raise UserError(f"cannot use {self._workdir}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._overwrite:
                self._empty()
        except OSError as error:
            self._file.close()
            raise UserError(f"another run is using {self._workdir}") from error
        except UserError:
            self._file.close()
            raise

    def __exit__(self, *_: Any) -> None:
        if jax.process_index() == 0:
            self._file.close()

    def _empty(self) -> None:
        """Delete a run's files, but never a folder that holds no run."""
        found = [p for p in self._workdir.iterdir() if p.name != self.NAME]
        if found and not (self._workdir / "config.json").exists():
            raise UserError(f"{self._workdir} holds no run of ours; --overwrite leaves it alone")
        # config.json last: a kill in between leaves a folder that --overwrite still accepts.
        for path in sorted(found, key=lambda p: p.name == "config.json"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def prepare(experiment: Experiment, config: Any) -> None:
    """Set what the binary wants of XLA; without effect on a process that has used a device before.

    Args:
      experiment: The binary; what XLA_FLAGS and PJRT_NPROC say already stays as it is.
      config: Its settings.
    """
    wanted = experiment.xla_flags
    flags = wanted(config) if callable(wanted) else wanted
    given = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.split("=")[0] for flag in given}
    added = [flag for flag in flags if flag.split("=")[0] not in names]
    if added:
        os.environ["XLA_FLAGS"] = " ".join(given + added)
    if experiment.cpu_threads:
        os.environ.setdefault("PJRT_NPROC", str(experiment.cpu_threads))


def _keep_compiled_programs() -> None:
    """Compile each program once a machine, not once a run."""
    default = Path.home() / ".cache" / "asym" / "jax"
    folder = os.environ.get("ASYM_CACHE_DIR") or str(default)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _help(experiment: Experiment) -> str:
    base = experiment.settings()
    name = experiment.command
    parts = [
        f"{experiment.title}\n{experiment.citation}",
        experiment.about.strip(),
        "Presets (--preset=):\n"
        + "\n".join(f"  {p:8} {doc}" for p, doc in experiment.preset_docs.items()),
    ]
    if experiment.methods:
        width = max(map(len, experiment.methods))
        rows = [f"  {m:{width}}  {doc}" for m, doc in experiment.methods.items()]
        parts.append("Methods (--method=; --compare runs all):\n" + "\n".join(rows))
    examples = [name, *experiment.examples]
    parts.append("Examples:\n" + "\n".join(f"  {line}" for line in examples))
    parts.append("Defaults below are those of the quick preset.")
    parts.append(settings.help_text(experiment.config, base))
    return "\n\n".join(parts)
