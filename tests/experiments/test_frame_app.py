"""The frame of main: working folder, lock, resume, signals, disk, report."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.common import app, files, metrics, report
from experiments.common.errors import UserError
from tests.experiments import toy
from tests.experiments.toy import with_devices


def run(*words):
    return app.run(toy.EXPERIMENT, ["toy", "--preset=smoke", *words])


def start(*words, program=("-m", "tests.experiments.toy"), **settings):
    """The toy binary in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *program, "--preset=smoke", *words],
        cwd=report.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A finished run of both methods with three seeds."""
    workdir = tmp_path_factory.mktemp("complete")
    assert run(f"--workdir={workdir}", "--compare", "--num_seeds=3") == 0
    return workdir


def test_results_hold_everything_a_reader_needs(complete):
    results = files.read_json(complete / "results.json")
    assert results["command"] == "./run toy --preset=smoke --num_seeds=3 --compare=True"
    assert set(results["methods"]) == {"sgd", "adam"}
    loss = results["methods"]["adam"]["test_loss"]
    per_seed = np.array(loss["per_seed"])
    assert per_seed.shape == (3,)
    assert loss["mean"] == pytest.approx(per_seed.mean())
    assert loss["standard_error"] == pytest.approx(per_seed.std(ddof=1) / 3**0.5)
    assert results["seeds"] == [0, 1, 2]
    assert results["versions"]["jax"]
    assert results["config"]["learning_rate"] == 0.05
    assert results["wall_seconds"] > 0
    assert [c["holds"] for c in results["claims"]] == [True, True]
    assert report.results_rows(results)[0] == ["method", "loss on all examples"]
    assert results["figures"] == ["toy.png"]
    assert (complete / "figures" / "toy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system assigns no cores")
def test_results_count_the_cores_that_a_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert report.environment()["cpu_cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert report.environment()["cpu_cores"] == len(allowed)


def test_some_of_the_methods(tmp_path, capsys):
    assert run(f"--workdir={tmp_path / 'run'}", "--methods=adam") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["methods"]) == ["adam"]
    assert run(f"--workdir={tmp_path / 'other'}", "--methods=adam,lion") == 2
    assert "--methods=lion: choose among sgd, adam" in capsys.readouterr().err


def test_a_complete_run_is_shown_and_not_repeated(complete, capsys):
    before = (complete / "results.json").stat().st_mtime_ns
    assert run(f"--workdir={complete}", "--compare", "--num_seeds=3") == 0
    assert "is complete; --overwrite runs it again" in capsys.readouterr().out
    assert (complete / "results.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused_and_nothing_is_lost(complete, capsys):
    before = (complete / "results.json").read_bytes()
    assert run(f"--workdir={complete}", "--compare", "--num_seeds=2") == 2
    assert "other settings (num_seeds)" in capsys.readouterr().err
    assert (complete / "results.json").read_bytes() == before


def test_overwrite_starts_afresh(tmp_path):
    assert run(f"--workdir={tmp_path}", "--steps=10") == 0
    assert run(f"--workdir={tmp_path}", "--steps=20", "--overwrite") == 0
    assert files.read_json(tmp_path / "results.json")["config"]["steps"] == 20


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_a_folder_of_something_else_is_left_alone(tmp_path, words, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(f"--workdir={tmp_path}", *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    with (tmp_path / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(f"--workdir={tmp_path}") == 2
    assert f"another run is using {tmp_path}" in capsys.readouterr().err
    assert run(f"--workdir={tmp_path}", "--steps=10") == 0


def test_a_workdir_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(f"--workdir={tmp_path}/file/run") == 2
    assert "cannot use" in capsys.readouterr().err


def test_a_damaged_config_is_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")
    assert run(f"--workdir={tmp_path}") == 2
    assert "config.json is not valid JSON" in capsys.readouterr().err


def test_the_default_folder_tells_settings_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--steps=10") == 0
    assert run("--steps=20") == 0
    names = sorted(p.name for p in (tmp_path / "runs" / "toy").iterdir())
    assert len(names) == 2
    assert all(name.startswith("smoke-") for name in names)


def test_an_unexpected_error_keeps_its_traceback(tmp_path):
    def broken(config, run):
        raise KeyError("a defect of ours")

    import dataclasses

    experiment = dataclasses.replace(toy.EXPERIMENT, measure=broken)
    with pytest.raises(KeyError, match="a defect of ours"):
        app.run(experiment, ["toy", "--preset=smoke", f"--workdir={tmp_path}"])


def wait_for_line(path, process, timeout=90):
    """Return once the run has written a line of metrics."""
    end = time.monotonic() + timeout
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_130_and_the_run_resumes(tmp_path, number):
    words = [f"--workdir={tmp_path}/a", "--steps=20000", "--checkpoint_every=20000"]
    process = start(*words)
    wait_for_line(tmp_path / "a" / "train_sgd" / "metrics.jsonl", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "the same command resumes" in err
    saved = [int(p.name) for p in (tmp_path / "a" / "train_sgd" / "checkpoints").glob("[0-9]*")]
    assert len(saved) == 1
    assert 0 < saved[0] < 20000
    assert run(*words) == 0
    assert f"resuming at step {saved[0]} of 20000" not in out
    assert run(f"--workdir={tmp_path}/b", *words[1:]) == 0
    for name in ("outcomes/sgd.npz",):
        a, b = (files.read_arrays(tmp_path / run_ / name) for run_ in "ab")
        for key in a | b:
            np.testing.assert_array_equal(a[key], b[key])
    lines = [(tmp_path / r / "train_sgd" / "metrics.jsonl").read_text() for r in "ab"]
    assert lines[0] == lines[1]


def test_a_full_disk_gives_one_line_and_leaves_the_last_checkpoint(tmp_path):
    words = [f"--workdir={tmp_path}", "--ballast=200000"]
    assert run(*words, "--steps=20") == 0
    (tmp_path / "results.json").unlink()
    (tmp_path / "outcomes" / "sgd.npz").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"steps": 60}))

    program = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "runpy.run_module('tests.experiments.toy', run_name='__main__')"
    )
    process = start(*words, "--steps=60", program=["-c", program])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "cannot write a checkpoint" in line
    assert "the one of step 20 is whole" in line
    assert "Traceback" not in err
    assert run(*words, "--steps=60") == 0
    assert files.read_json(tmp_path / "results.json")["config"]["steps"] == 60


def test_one_device_and_eight_give_the_same_losses(tmp_path):
    losses = []
    for count in (1, 8):
        process = start(
            f"--workdir={tmp_path}/{count}",
            "--batch=16",
            env=with_devices(count),
        )
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert files.read_json(tmp_path / str(count) / "results.json")["num_devices"] == count
        path = tmp_path / str(count) / "train_sgd" / "metrics.jsonl"
        losses.append([row["loss"][0] for row in metrics.read(path) if "loss" in row])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    process = start(
        f"--workdir={tmp_path}",
        "--batch=9",
        env=with_devices(8),
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "a batch of 9 does not divide among 8 devices" in err


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_train_to_the_same_parameters_as_one(tmp_path):
    words = ["--steps=1", "--log_every=1", "--checkpoint_every=1"]
    assert run(f"--workdir={tmp_path}/one", *words) == 0
    port = free_port()
    processes = [
        start(
            f"--workdir={tmp_path}/two",
            *words,
            "--num_processes=2",
            f"--process_id={i}",
            f"--coordinator=127.0.0.1:{port}",
        )
        for i in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    assert files.read_json(tmp_path / "two" / "results.json")["num_processes"] == 2
    one, two = (files.read_arrays(tmp_path / r / "outcomes" / "sgd.npz") for r in ("one", "two"))
    for key in one:
        np.testing.assert_allclose(one[key], two[key], rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--num_processes=2"], "needs --coordinator=host:port"),
        (["--num_processes=2", "--coordinator=127.0.0.1:1", "--process_id=2"], "must be below"),
        (["--num_devices=99"], "--num_devices=99: this run has"),
    ],
)
def test_impossible_devices_are_refused(tmp_path, words, told, capsys):
    assert run(f"--workdir={tmp_path}", *words) == 2
    assert told in capsys.readouterr().err


def test_claims_are_judged_by_their_mean_and_nan_never_holds():
    good = report.claim("x", [0.5, 1.5], ">=", 1.0)
    assert (good.measured, good.holds, good.standard_error) == (1.0, True, pytest.approx(0.5))
    assert not report.claim("x", [0.5, 1.5], ">", 1.0).holds
    assert not report.claim("x", [np.nan, 1.5], "<", 9.0).holds
    assert report.report_only("x", 3.0).holds is None
    rows = report.claim_rows({"claims": [vars(report.claim("a|b", 2.0, "<", 1.0))]})[1]
    assert rows == [["a|b", "< 1", "2.000", "DOES NOT HOLD"]]
    assert "a\\|b" in report.markdown(["claim"], [[rows[0][0]]])


def test_files_are_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "value.json"
    files.write_json(target, {"x": np.float32(1.5), "y": [float("nan")]})
    assert files.read_json(target) == {"x": 1.5, "y": [None]}

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        files.write_json(target, {"x": 2})
    assert files.read_json(target)["x"] == 1.5
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_pickles_are_never_opened(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read"):
        files.read_arrays(path)
