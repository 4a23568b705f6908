"""What the package promises to pip, and which floor may import which."""

import ast
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"jax", "chex", "jaxtyping"}
# A room of the core imports nothing else; numpy serves the metrics that are computed on the host.
CORE_IMPORTS = {"asym", "jax", "chex", "jaxtyping", "optax"}
CORE_STANDARD_LIBRARY = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
HOST_ROOMS = {"asym/retrieval.py"}


def requirement_lines() -> list[str]:
    """The lines of requirements.txt without comments."""
    text = (ROOT / "requirements.txt").read_text()
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pinned() -> dict[str, str]:
    """The pinned version of every package."""
    found = {}
    for requirement in map(Requirement, requirement_lines()):
        (specifier,) = requirement.specifier
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def sources(folder: str) -> list[pathlib.Path]:
    """The Python files below a folder of the repository."""
    return sorted((ROOT / folder).rglob("*.py"))


def imported(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """The full names of the modules that the source of a package's file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            # `from experiments import asl` names the module in the second half.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports(path: pathlib.Path) -> set[str]:
    """The full names of the modules that a file imports."""
    return set(imported(path.read_text(), path.relative_to(ROOT).parent.parts))


def name(path: pathlib.Path) -> str:
    """A file as a test's name."""
    return path.relative_to(ROOT).as_posix()


def owner(module: str) -> str | None:
    """The experiment (or `common`) that a module belongs to; None outside experiments."""
    parts = module.split(".")
    folders = {path.parent.name for path in (ROOT / "experiments").glob("*/__init__.py")}
    known = parts[0] == "experiments" and len(parts) > 1 and parts[1] in folders
    return parts[1] if known else None


def test_core_depends_on_three_packages_alone() -> None:
    required = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert required == CORE


def test_every_requirement_is_pinned_to_one_version_once() -> None:
    lines = requirement_lines()
    for line in lines:
        assert re.fullmatch(r'[\w.-]+==[\w.]+(; sys_platform [!=]= "\w+")?', line), line
    assert len(pinned()) == len(lines)


@pytest.mark.parametrize(
    "line", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["experiments"]]
)
def test_pin_lies_in_the_range_of_the_package(line: str) -> None:
    requirement = Requirement(line)
    version = pinned()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


@pytest.mark.parametrize("path", sources("experiments"), ids=name)
def test_experiments_import_only_what_the_extra_installs(path: pathlib.Path) -> None:
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["experiments"]]
    installed = {canonicalize_name(Requirement(line).name) for line in declared}
    distribution = {
        "PIL": "pillow",
        "absl": "absl-py",
        "mujoco": "mujoco-mjx",  # which depends on it
        "jaxlib": "jax",
        "orbax": "orbax-checkpoint",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
    }
    roots = {module.split(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
    third_party = roots - {"asym", "experiments"}
    names = {canonicalize_name(distribution.get(root, root)) for root in third_party}
    assert names <= installed


@pytest.mark.parametrize("path", sources("asym"), ids=name)
def test_core_imports_only_what_it_may(path: pathlib.Path) -> None:
    allowed = CORE_IMPORTS | CORE_STANDARD_LIBRARY
    if name(path) in HOST_ROOMS:
        allowed = allowed | {"numpy"}
    assert {module.split(".")[0] for module in imports(path)} <= allowed


def test_host_rooms_exist() -> None:
    assert {room for room in HOST_ROOMS if not (ROOT / room).is_file()} == set()


@pytest.mark.parametrize("path", sources("experiments"), ids=name)
def test_no_experiment_imports_another(path: pathlib.Path) -> None:
    inside = path.relative_to(ROOT / "experiments").parts
    here = inside[0] if len(inside) > 1 else None
    owners = {owner(module) for module in imports(path)} - {None}
    if here is None:  # the list of papers reads their results, it needs none of their code
        assert owners <= {"common"}
    else:
        assert owners <= {here, "common"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import experiments.common.errors", "common"),
        ("from experiments import common", "common"),
        ("from experiments.common import errors", "common"),
        ("from ..common import errors", "common"),
        ("from .. import common", "common"),
        ("from . import data", "asl"),
        ("def late():\n    from experiments.common import errors", "common"),
    ],
)
def test_every_form_of_import_is_noticed(source: str, expected: str) -> None:
    modules = imported(source, ("experiments", "asl"))
    assert {owner(module) for module in modules} == {expected}
