import json

import numpy as np
import pytest

from tests.golden import cases, parity
from tests.golden.compare import Tolerance, deviation
from tests.golden.discovery import Paper

ONE = np.ones(1)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("gae/basic/in/reward", ("gae", "basic", "in", "reward")),
        ("net/a/b/c/out/y", ("net", "a/b/c", "out", "y")),
        ("net/basic/in/params/out/kernel", ("net", "basic", "in", "params/out/kernel")),
        ("in/in/in/in", ("in", "in", "in", "in")),
    ],
)
def test_key_is_split_at_its_first_direction(key, expected):
    assert cases.split_key(key) == expected


@pytest.mark.parametrize("key", ["gae", "gae/in/reward", "gae/basic/in", "gae/basic/reward"])
def test_malformed_key_is_named(key):
    with pytest.raises(cases.MalformedVectors, match=key):
        cases.split_key(key)


def test_shared_weights_join_every_case_of_their_function_only():
    found = cases.group_arrays(
        {
            "model/weights/in/params/l1/kernel": ONE,
            "model/weights/in/mode": np.array("full"),
            "model/a/b/in/x": 2 * ONE,
            "model/a/b/out/y": 3 * ONE,
            "model/other/in/mode": np.array("fast"),
            "model/other/out/y": 3 * ONE,
            "constant/main/out/table": 4 * ONE,
        }
    )
    assert [(case.function, case.name) for case in found] == [
        ("model", "a/b"),
        ("model", "other"),
        ("constant", "main"),
    ]
    assert set(found[0].inputs) == {"params/l1/kernel", "mode", "x"}
    assert set(found[0].expected) == {"y"}
    assert found[1].inputs["mode"].item() == "fast"
    assert not found[2].inputs


def test_shared_weights_must_not_be_ambiguous_or_useless():
    twice = {"model/weights/in/w": ONE, "model/config/in/w": ONE, "model/a/out/y": ONE}
    with pytest.raises(cases.MalformedVectors, match="'w'"):
        cases.group_arrays(twice)
    with pytest.raises(cases.MalformedVectors, match="model"):
        cases.group_arrays({"model/weights/in/w": ONE})


def test_files_are_read_without_pickle(tmp_path):
    np.savez(tmp_path / "bad.npz", **{"f/a/out/y": np.array([{}], dtype=object)})
    with pytest.raises(cases.MalformedVectors, match="f/a/out/y"):
        cases.load_cases(tmp_path / "bad.npz")


def test_loaded_arrays_are_read_only(tmp_path):
    np.savez(tmp_path / "good.npz", **{"f/a/in/x": ONE, "f/a/out/y": ONE})
    (case,) = cases.load_cases(tmp_path / "good.npz")
    with pytest.raises(ValueError, match="read-only"):
        case.inputs["x"][0] = 2


TIGHT = Tolerance(1e-6, 1e-8)


@pytest.mark.parametrize(
    ("actual", "expected", "accepted"),
    [
        ([100.0, 1 + 1.9e-6], [100.0, 1.0], True),
        ([100.0, 1 + 2.1e-6], [100.0, 1.0], False),
        ([0.9e-8], [0.0], True),
        ([1.1e-8], [0.0], False),
        ([np.nan, np.inf], [np.nan, np.inf], True),
        ([np.nan, -np.inf], [np.nan, np.inf], False),
        ([0.0], [np.nan], False),
        ([np.nan], [0.0], False),
        ([[1.0]], [1.0], False),
        (["a"], ["a"], True),
        (["a"], ["b"], False),
        (["a"], [1.0], False),
        ([], [], True),
        ([1 + 1e-9j], [1 + 0j], True),
        ([1 + 1e-5j], [1 + 0j], False),
    ],
)
def test_comparison(actual, expected, accepted):
    assert deviation(np.array(actual), np.array(expected), TIGHT).accepted == accepted


def test_default_tolerance_follows_the_recorded_dtype():
    assert Tolerance.default(np.dtype(np.float64)).relative == 1e-6
    assert Tolerance.default(np.dtype(np.float32)).relative == 2e-4
    exact = Tolerance.default(np.dtype(np.int64))
    assert not deviation(np.array([3]), np.array([4]), exact).accepted
    assert deviation(np.array([4.0]), np.array([4]), exact).accepted


def test_absolute_part_is_the_same_for_all_entries():
    recorded = np.array([0.0, 1e38])
    near = np.array([5e-10, 1e38])
    assert not deviation(near, recorded, Tolerance(1e-9, 0.0)).accepted
    assert deviation(near, recorded, Tolerance(1e-9, 0.0, 0.0, 1e-9)).accepted
    assert not deviation(4 * near, 4 * recorded, Tolerance(1e-9, 0.0, 0.0, 1e-9)).accepted


def test_noise_counts_as_zero():
    noise = np.array([1e-17, 0.0])
    assert not deviation(np.zeros(2), noise, TIGHT).accepted
    assert deviation(np.zeros(2), noise, Tolerance(1e-6, 1e-8, 1e-15)).accepted


def _paper(**declared):
    declarations = {"adapters": {}, "tolerances": {}, "information": frozenset(), "missing": {}}
    return Paper("paper", **{**declarations, **declared})


def test_closest_declaration_wins():
    loose, looser = Tolerance(1e-3, 0.0), Tolerance(1e-2, 0.0)
    paper = _paper(tolerances={"f": loose, "f/grad": looser}, information=frozenset({"f/aux/seen"}))
    recorded = np.zeros(1)
    assert paper.tolerance("f", "loss", recorded) == loose
    assert paper.tolerance("f", "grad/l1/kernel", recorded) == looser
    assert paper.tolerance("g", "loss", recorded) == Tolerance.default(recorded.dtype)
    assert paper.is_compared("f", "aux/other")
    assert not paper.is_compared("f", "aux/seen")


def test_case_needs_an_adapter_and_every_output():
    case = cases.Case("f", "a", {"x": ONE}, {"y": ONE, "z": ONE})
    with pytest.raises(LookupError, match="paper/f"):
        parity.run_case(_paper(), case)
    paper = _paper(adapters={"f": lambda inputs: {"y": inputs["x"], "unrecorded": ONE}})
    results = parity.run_case(paper, case)
    assert {output: found.accepted for output, (found, _) in results.items()} == {
        "y": True,
        "z": False,
    }


def _write(folder, **changes):
    scores = np.array([[1.0, 2.0]])
    arrays = {
        "cross_entropy_label_smooth/a/in/logits": scores,
        "cross_entropy_label_smooth/a/in/labels": np.array([1]),
        "cross_entropy_label_smooth/a/in/epsilon": np.array(0.0),
        "cross_entropy_label_smooth/a/out/loss": np.array(np.log1p(np.exp(-1.0))),
    }
    np.savez(folder / "asl.npz", **{**arrays, **changes})


def test_parity_command_tells_agreement(tmp_path, capsys):
    _write(tmp_path)
    assert parity.main(["asl", "--vectors", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accepted"]
    assert report["groups"][0]["function"] == "cross_entropy_label_smooth"
    assert report["groups"][0]["deviation"] < 1e-14


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cross_entropy_label_smooth/a/out/loss": np.array(0.3)}, "FAIL cross_entropy"),
        ({"cross_entropy_label_smooth/a/in/labels": np.array([[1]])}, "Error"),
        ({"unknown/a/out/y": ONE}, "neither an adapter nor a written reason"),
    ],
)
def test_parity_command_fails_with_a_reason(tmp_path, capsys, changes, words):
    _write(tmp_path, **changes)
    assert parity.main(["asl", "--vectors", str(tmp_path)]) == 1
    assert words in capsys.readouterr().out
