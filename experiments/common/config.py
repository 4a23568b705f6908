"""An experiment's settings: one frozen dataclass, from which the flags and their help are made.

    @dataclasses.dataclass(frozen=True)
    class Config(config.Data, config.Training):
        learning_rate: float = config.field(1e-3, "Adam's step size.", minimum=0)

A value comes from, in rising order: the dataclass default, the preset, an explicit flag.
"""

import dataclasses
import hashlib
import json
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

from experiments.common.errors import UserError

ConfigType = TypeVar("ConfigType", bound="Common")


def field(
    default: Any,
    doc: str,
    *,
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    identity: bool = True,
) -> Any:
    """A documented setting.

    Args:
      default: Value where neither the preset nor a flag says otherwise.
      doc: One sentence for `--help`.
      choices: The legal values.
      minimum: Smallest legal value (of every entry, for a tuple).
      maximum: Largest legal value.
      identity: Whether two runs that differ only here are different experiments. A run resumes
        only where all identity fields agree.

    Returns:
      A dataclass field.
    """
    metadata = {
        "doc": doc,
        "choices": tuple(choices) if choices is not None else None,
        "minimum": minimum,
        "maximum": maximum,
        "identity": identity,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Common:
    """Settings that every binary has."""

    preset: str = field("quick", "Base values: see the presets above.")
    seed: int = field(0, "First seed; seeds seed, seed+1, ... are run.", minimum=0)
    num_seeds: int = field(1, "Number of seeds, run as one batch.", minimum=1)
    workdir: str = field(
        "",
        "Folder for checkpoints, metrics, figures and results.json; "
        "by default runs/<paper>/<preset>, with a suffix that tells other settings apart.",
        identity=False,
    )
    overwrite: bool = field(
        False, "Delete what --workdir holds instead of resuming it.", identity=False
    )

    def check(self) -> None:
        """Raise a UserError where settings contradict each other; overridden by experiments."""


@dataclasses.dataclass(frozen=True)
class Compared(Common):
    """Settings of a binary with several methods; it overrides `method` with its choices."""

    method: str = field("", "What to run.")
    compare: bool = field(
        False, "Run all methods and print one table. An explicit --method turns it off."
    )
    methods: tuple[str, ...] = field(
        (), "The methods that --compare runs, which this flag turns on; all of them by default."
    )

    def chosen(self, known: Iterable[str]) -> list[str]:
        """The methods of the run.

        Args:
          known: Those that --compare runs by default.

        Returns:
          Names.

        Raises:
          UserError: --methods names another one.
        """
        known = list(known)
        unknown = [name for name in self.methods if name not in known]
        if unknown:
            raise UserError(f"--methods={unknown[0]}: choose among {', '.join(known)}")
        return list(self.methods or known) if self.compare else [self.method]


@dataclasses.dataclass(frozen=True)
class Training(Common):
    """Settings of a binary that trains with `experiments.common.loop`."""

    log_every: int = field(
        50, "Training steps in one dispatch to the device, and in one line of metrics.", minimum=1
    )
    checkpoint_every: int = field(
        500, "Training steps between checkpoints; the last two are kept.", minimum=1
    )
    num_devices: int = field(
        0, "Devices to share each batch among; 0 takes all.", minimum=0, identity=False
    )
    num_processes: int = field(
        1, "Processes that train together (jax.distributed).", minimum=1, identity=False
    )
    process_id: int = field(
        0, "Which of them this is, from 0; process 0 writes.", minimum=0, identity=False
    )
    coordinator: str = field(
        "", "host:port of process 0, needed when --num_processes > 1.", identity=False
    )


@dataclasses.dataclass(frozen=True)
class Data(Common):
    """Settings of a binary that can read data from disk."""

    data_dir: str = field(
        "",
        "Folder of data that is not bundled (prepared TFDS sets, or the paper's layout).",
        identity=False,
    )


def build(
    cls: type[ConfigType],
    presets: Mapping[str, Mapping[str, Any]],
    preset: str = "quick",
    **explicit: Any,
) -> ConfigType:
    """The checked settings of a preset with explicit values on top.

    Args:
      cls: The experiment's dataclass.
      presets: Values by preset name.
      preset: Which preset.
      **explicit: Values that win over the preset.

    Returns:
      An instance of `cls`.

    Raises:
      UserError: An unknown preset or field, or an illegal value.
    """
    if preset not in presets:
        raise UserError(f"--preset={preset}: choose one of {', '.join(presets)}")
    values = dict(presets[preset]) | {"preset": preset} | explicit
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise UserError(f"no setting is called {', '.join(unknown)}")
    if "compare" in names and "compare" not in explicit:
        if "method" in explicit and "methods" in explicit:
            raise UserError("--method and --methods: give one of them")
        if "method" in explicit:
            values |= {"compare": False, "methods": ()}
        if "methods" in explicit:
            values["compare"] = True
    built = cls(**values)
    for f in dataclasses.fields(built):
        _check_field(f, getattr(built, f.name))
    if isinstance(built, Compared) and built.methods and not built.compare:
        raise UserError("--methods needs --compare")
    built.check()
    return built


def changed(config: Common, presets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that differ from those of their preset.

    Args:
      config: The settings.
      presets: Values by preset name.

    Returns:
      Names of fields.
    """
    preset = presets[config.preset]
    fields = dataclasses.fields(config)
    return [f.name for f in fields if getattr(config, f.name) != preset.get(f.name, f.default)]


def refuse_overridden(
    config: Common,
    presets: Mapping[str, Mapping[str, Any]],
    recipes: Mapping[str, Mapping[str, Any]],
    methods: Sequence[str],
) -> None:
    """Refuse a flag that every method of the run overrides: it would do nothing.

    Args:
      config: The settings.
      presets: Values by preset name.
      recipes: What each method fixes; "custom" fixes nothing.
      methods: The methods of the run.

    Raises:
      UserError: A changed setting is fixed by all methods, to other values.
    """
    for name in changed(config, presets):
        value = getattr(config, name)
        fixed = all(name in recipes[m] for m in methods)
        if fixed and value not in [recipes[m][name] for m in methods]:
            told = f"--{name}={value}: --method={methods[0]} has its own"
            raise UserError(f"{told}, --method=custom takes it")


def _check_field(f: dataclasses.Field, value: Any) -> None:
    choices = f.metadata["choices"]
    entries = value if isinstance(value, tuple) else (value,)
    for entry in entries:
        if isinstance(entry, float) and not math.isfinite(entry):
            raise UserError(f"--{f.name}={value}: must be finite")
        if choices is not None and entry not in choices:
            names = ", ".join(str(c) for c in choices)
            raise UserError(f"--{f.name}={entry}: choose one of {names}")
        low, high = f.metadata["minimum"], f.metadata["maximum"]
        if low is not None and entry < low:
            raise UserError(f"--{f.name}={entry}: must be at least {low}")
        if high is not None and entry > high:
            raise UserError(f"--{f.name}={entry}: must be at most {high}")


def define_flags(cls: type[Common]) -> flags.FlagValues:
    """Flags for every field of a settings dataclass; unset ones stay None.

    Args:
      cls: The experiment's dataclass.

    Returns:
      A fresh flag set (not absl's global one, so that several experiments fit in one process).
    """
    values = flags.FlagValues()
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        doc = f.metadata["doc"]
        if typing.get_origin(kind) is tuple:
            flags.DEFINE_list(f.name, None, doc, flag_values=values)
        elif kind is bool:
            flags.DEFINE_bool(f.name, None, doc, flag_values=values)
        elif kind in (int, float):
            define = flags.DEFINE_integer if kind is int else flags.DEFINE_float
            define(f.name, None, doc, flag_values=values)
        elif kind is str:
            flags.DEFINE_string(f.name, None, doc, flag_values=values)
        else:
            raise TypeError(f"{cls.__name__}.{f.name}: no flag for the type {kind}")
    return values


def parse(
    cls: type[ConfigType], presets: Mapping[str, Mapping[str, Any]], argv: Sequence[str]
) -> ConfigType:
    """Settings from a command line.

    Args:
      cls: The experiment's dataclass.
      presets: Values by preset name.
      argv: The command line with the program's name first.

    Returns:
      An instance of `cls`.

    Raises:
      UserError: An unknown flag, a value of the wrong type, or a word that is no flag.
    """
    values = define_flags(cls)
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag (flags look like --name=value)")
    hints = typing.get_type_hints(cls)
    explicit: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        if values[f.name].present:
            explicit[f.name] = _from_flag(f.name, hints[f.name], values[f.name].value)
    preset = explicit.pop("preset", cls.preset)
    return build(cls, presets, preset, **explicit)


def _from_flag(name: str, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is not tuple:
        return value
    entry = typing.get_args(kind)[0]
    try:
        return tuple(entry(item) for item in value)
    except ValueError as error:
        raise UserError(f"--{name}={','.join(value)}: {error}") from error


def identity(config: Common) -> dict[str, Any]:
    """The settings that make a run this run, as JSON values.

    Args:
      config: The settings.

    Returns:
      Field name to value, without the fields that only say where or how to run.
    """
    named = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.metadata["identity"]
    }
    return json.loads(json.dumps(named))


def suffix(config: Common, base: Common) -> str:
    """A short name for how a run differs from its preset: empty, or a dash and a digest.

    Args:
      config: The settings.
      base: The preset's own settings.

    Returns:
      For instance "" or "-3f9a1c".
    """
    if identity(config) == identity(base):
        return ""
    text = json.dumps(identity(config), sort_keys=True)
    return "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def help_text(cls: type[Common], base: Common) -> str:
    """The flags, their types, docs and preset values, for `--help`.

    Args:
      cls: The experiment's dataclass.
      base: The settings of the default preset.

    Returns:
      Text, the experiment's own flags first.
    """
    hints = typing.get_type_hints(cls)
    common = {f.name for kind in (Compared, Training, Data) for f in dataclasses.fields(kind)}
    common -= {"method", "compare"}
    groups = {"Flags of this paper": [], "Flags of every binary": []}  # type: dict[str, list[str]]
    for f in dataclasses.fields(cls):
        title = "Flags of every binary" if f.name in common else "Flags of this paper"
        default = getattr(base, f.name)
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        lines = [
            f"  --{f.name}={shown}" if shown != "" else f"  --{f.name}=<{_kind(hints[f.name])}>"
        ]
        lines.append(textwrap.indent(textwrap.fill(f.metadata["doc"], 92), " " * 6))
        if f.metadata["choices"]:
            lines.append("      One of: " + ", ".join(map(str, f.metadata["choices"])))
        groups[title].append("\n".join(lines))
    return "\n\n".join(f"{title}:\n" + "\n".join(rows) for title, rows in groups.items() if rows)


def _kind(hint: Any) -> str:
    if isinstance(hint, types.GenericAlias):
        return f"{hint.__args__[0].__name__},..."
    return hint.__name__
