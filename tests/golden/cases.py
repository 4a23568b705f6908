"""Reads recorded cases from .npz files keyed `<function>/<case...>/in|out/<name...>`."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

VECTORS = pathlib.Path(__file__).parent / "vectors"


class MalformedVectors(ValueError):
    """A file of vectors does not keep to the layout."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded call: the names carry neither the function, nor the case, nor the direction."""

    function: str
    name: str
    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]


def split_key(key: str) -> tuple[str, str, str, str]:
    """Splits a key into function, case, direction (`in` or `out`) and name.

    Case and name may contain slashes.  The first `in` or `out` after at least one word of the case
    is the direction, so that a name like `params/out/kernel` stays whole.
    """
    words = key.split("/")
    for place in range(2, len(words) - 1):
        if words[place] in ("in", "out"):
            case, name = "/".join(words[1:place]), "/".join(words[place + 1 :])
            return words[0], case, words[place], name
    raise MalformedVectors(f"key {key!r} is not of the form <function>/<case>/in|out/<name>")


def group_arrays(arrays: Mapping[str, np.ndarray]) -> list[Case]:
    """Gathers arrays into cases, in the order of their first key.

    A case that has inputs only is no case: its inputs belong to every other case of its function,
    unless that case brings its own array of the same name.
    """
    halves: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
    for key, array in arrays.items():
        function, case, direction, name = split_key(key)
        halves.setdefault((function, case), {"in": {}, "out": {}})[direction][name] = array
    shared: dict[str, dict[str, np.ndarray]] = {}
    for (function, case), half in halves.items():
        if half["out"]:
            continue
        common = shared.setdefault(function, {})
        if twice := common.keys() & half["in"].keys():
            raise MalformedVectors(
                f"{function}/{case} shares {sorted(twice)}, which another shared case also holds"
            )
        common.update(half["in"])
    cases = [
        Case(
            function,
            case,
            MappingProxyType({**shared.get(function, {}), **half["in"]}),
            MappingProxyType(half["out"]),
        )
        for (function, case), half in halves.items()
        if half["out"]
    ]
    if lonely := shared.keys() - {case.function for case in cases}:
        raise MalformedVectors(f"{sorted(lonely)} hold inputs, but no case with outputs")
    return cases


@functools.lru_cache(maxsize=4)
def load_cases(path: pathlib.Path) -> tuple[Case, ...]:
    """Reads all cases of a file of vectors, without pickle."""
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            try:
                arrays[key] = archive[key]
            except ValueError as error:
                raise MalformedVectors(f"{path.name}: {key!r} cannot be read: {error}") from error
    for array in arrays.values():
        # Cases share arrays: an adapter that writes into one would change another's inputs.
        array.flags.writeable = False
    try:
        return tuple(group_arrays(arrays))
    except MalformedVectors as error:
        raise MalformedVectors(f"{path.name}: {error}") from error
