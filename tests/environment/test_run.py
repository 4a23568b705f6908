"""The two commands: what they start, refuse, install and repair.  No test needs a network."""

import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from tests.environment.checkout import BASE_PYTHON, CANDIDATES, Checkout, write_command


@pytest.fixture
def empty(tmp_path: pathlib.Path) -> Checkout:
    """A checkout whose .venv has no packages yet."""
    return Checkout(tmp_path)


@pytest.fixture
def ready(empty: Checkout) -> Checkout:
    """A checkout with a complete environment and an empty log."""
    assert empty.call("run").returncode == 0
    empty.log.unlink()
    return empty


def only_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


# What the commands start.


def test_first_call_installs_once_and_later_calls_leave_pip_alone(empty: Checkout) -> None:
    first = empty.call("run")
    assert (first.returncode, first.stdout) == (0, "papers: asl, learning_to_fly\n")
    assert empty.marker.exists()
    assert len(empty.calls) == 1
    assert empty.calls[0].startswith(f"install -r {empty.root}/requirements.txt")
    second = empty.call("run", FAKE_PIP_FAILS="1")
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert len(empty.calls) == 1


@pytest.mark.parametrize("name", ["learning_to_fly", "learning-to-fly", "Learning-To-Fly"])
def test_paper_runs_in_the_callers_folder_with_its_flags(
    ready: Checkout, tmp_path: pathlib.Path, name: str
) -> None:
    # Neither may be imported in place of the checkout's package or the standard library.
    (tmp_path / "experiments").mkdir()
    (tmp_path / "json.py").write_text("raise RuntimeError('imported from the working directory')")
    answer = ready.call("run", name, "--seeds=3", "two words", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    told = json.loads(answer.stdout)
    assert told["flags"] == ["--seeds=3", "two words"]
    assert told["folder"] == str(tmp_path)


def test_paper_keeps_the_process_and_the_exit_code(ready: Checkout) -> None:
    process = ready.start("run", "asl", "--fail")
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert json.loads(stdout)["process"] == process.pid


@pytest.mark.parametrize("name", ["nonsense", "common", "../asl", "asl/../asl", "", "--flag"])
def test_unknown_paper_is_one_line_and_needs_no_environment(empty: Checkout, name: str) -> None:
    answer = empty.call("run", name)
    assert answer.returncode == 2
    line = only_line(answer.stderr)
    assert repr(name) in line
    assert line.endswith(": asl learning_to_fly")
    assert empty.calls == []


def test_help_needs_no_environment(empty: Checkout) -> None:
    answer = empty.call("run", "--help")
    assert answer.returncode == 0
    assert "papers: asl learning_to_fly" in answer.stdout
    assert empty.calls == []


# What they refuse.


def test_unknown_accelerator_is_one_line(ready: Checkout) -> None:
    answer = ready.call("run", ASYM_ACCELERATOR="abacus")
    assert answer.returncode == 2
    assert "abacus" in only_line(answer.stderr)
    assert "cuda13" in answer.stderr


def test_no_recent_python_is_one_line(empty: Checkout) -> None:
    for name in CANDIDATES:
        write_command(empty.commands / name, "exit 1")
    answer = empty.call("run")
    assert answer.returncode == 1
    assert "no Python 3.11 or newer" in only_line(answer.stderr)


def test_named_python_that_is_too_old_is_one_line(ready: Checkout, tmp_path: pathlib.Path) -> None:
    old = tmp_path / "old python"
    write_command(old, "exit 1")
    answer = ready.call("run", PYTHON=str(old))
    assert answer.returncode == 1
    assert f"PYTHON={old}" in only_line(answer.stderr)


def test_python_without_venv_is_named_with_the_remedy(empty: Checkout) -> None:
    stub = f'case "$2" in *ensurepip*) exit 1 ;; esac\nexec "{BASE_PYTHON}" "$@"'
    for name in CANDIDATES:
        write_command(empty.commands / name, stub)
    answer = empty.call("run")
    assert answer.returncode == 1
    line = only_line(answer.stderr)
    assert "ensurepip" in line
    assert "apt install python3." in line


def test_failing_pip_says_why_and_the_next_call_continues(empty: Checkout) -> None:
    answer = empty.call("run", FAKE_PIP_FAILS="1")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "pip: ERROR: no route to the registry" in answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("environment: installing 1 pinned packages")
    assert not empty.marker.exists()
    assert empty.call("run").returncode == 0


# What they repair.


@pytest.mark.parametrize(
    "damage",
    [
        lambda ready: ready.marker.unlink(),
        lambda ready: ready.marker.write_text(""),
        lambda ready: shutil.rmtree(ready.site / "optax"),
        lambda ready: (ready.site / "~ptax").mkdir(),
        lambda ready: shutil.rmtree(ready.site / "jax-1.0.dist-info"),
        lambda ready: (ready.root / "requirements.txt").write_text("jax==1.0\n# another text\n"),
    ],
    ids=["no marker", "empty marker", "no package", "interrupted pip", "no record", "new pins"],
)
def test_damage_is_repaired(ready: Checkout, damage) -> None:
    damage(ready)
    answer = ready.call("run")
    assert (answer.returncode, answer.stdout) == (0, "papers: asl, learning_to_fly\n")
    assert len(ready.calls) == 1
    assert (ready.site / "optax").exists()
    assert not (ready.site / "~ptax").exists()
    assert ready.call("run", FAKE_PIP_FAILS="1").returncode == 0


def test_truncated_package_is_installed_again(ready: Checkout) -> None:
    ready.marker.unlink()
    (ready.site / "optax" / "__init__.py").write_text("")
    answer = ready.call("run")
    assert answer.returncode == 0
    assert "jax is damaged" in answer.stderr
    assert (ready.site / "optax" / "__init__.py").read_text() == "# empty\n"


def test_whole_package_is_not_installed_again(ready: Checkout) -> None:
    ready.marker.unlink()
    answer = ready.call("run")
    assert answer.returncode == 0
    assert "damaged" not in answer.stderr


@pytest.mark.parametrize("fault", ["dangling", "unimportable"])
def test_hopeless_environment_is_made_again(ready: Checkout, fault: str) -> None:
    # With the real pip, from a folder that holds the one wheel.
    if fault == "dangling":
        python = ready.venv / "bin" / "python"
        python.unlink()
        python.symlink_to("/nonexistent/python3")
    else:
        # The stub installs this one faithfully, so nothing short of starting anew can help.
        broken = ready.site / "pip" / "__main__.py"
        broken.write_text(broken.read_text().replace('"install"', '"nothing at all"'))
        shutil.rmtree(ready.site / "optax")
    answer = ready.call("run")
    assert (answer.returncode, answer.stdout) == (0, "papers: asl, learning_to_fly\n")
    assert "making .venv" in answer.stderr
    assert (ready.site / "pip" / "_internal").is_dir()
    again = ready.call("run", PIP_FIND_LINKS="")
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.parametrize("name", ["moved", "a folder with spaces"])
def test_moved_checkout_works_where_it_is(ready: Checkout, name: str) -> None:
    tool = ready.venv / "bin" / "tool"
    body = "import sys\nprint(sys.prefix, *sys.argv[1:])\n"
    write_command(tool, "")
    tool.write_text(f"#!{ready.venv}/bin/python\n{body}")
    # A second move meets the form of the first line that the first one wrote.
    for root in (ready.root.with_name("between"), ready.root.with_name(name)):
        ready.root.rename(root)
        ready.root = root
        assert ready.call("run").returncode == 0
        venv = root / ".venv"
        answer = subprocess.run(
            [venv / "bin" / "tool", "two words"], capture_output=True, text=True, check=True
        )
        assert answer.stdout == f"{venv} two words\n"
        assert str(venv) in (venv / "bin" / "activate").read_text()
        assert ready.call("run").stderr == ""


def test_two_simultaneous_calls_install_once(empty: Checkout) -> None:
    both = [empty.start("run", FAKE_PIP_SECONDS="1.5") for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [stdout for stdout, _ in results] == ["papers: asl, learning_to_fly\n"] * 2
    assert len(empty.calls) == 1


def test_lock_of_a_killed_run_does_not_block(empty: Checkout) -> None:
    lock = empty.root / ".venv.lock"
    lock.write_text("99999999\n")
    answer = empty.call("run")
    assert answer.returncode == 0
    assert "waiting" not in answer.stderr


def test_held_lock_is_waited_for(empty: Checkout) -> None:
    with open(empty.root / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = empty.start("run")
        assert "waiting for it" in process.stderr.readline()
        time.sleep(0.2)
        assert process.poll() is None
        assert empty.calls == []
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_kill_during_the_installation_is_recovered(empty: Checkout) -> None:
    process = empty.start("run", FAKE_PIP_SECONDS="30")
    deadline = time.monotonic() + 30
    while not empty.calls:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not empty.marker.exists()
    assert empty.call("run").returncode == 0
    assert empty.marker.exists()


# The accelerator.


def test_accelerator_is_added_remembered_and_removed(ready: Checkout) -> None:
    assert ready.call("run", ASYM_ACCELERATOR="cuda13").returncode == 0
    assert len(ready.calls) == 1
    assert " jax[cuda13]==1.0 " in ready.calls[0]
    assert ready.call("run").returncode == 0  # a new terminal without the variable
    assert len(ready.calls) == 1
    for package in ("jax_cuda13_plugin", "nvidia_cublas"):
        folder = ready.site / f"{package}-1.0.dist-info"
        folder.mkdir()
        name = package.replace("_", "-")
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    assert ready.call("run", ASYM_ACCELERATOR="cpu").returncode == 0
    assert "cuda13" not in ready.calls[1]
    removed = ready.calls[2].split()
    assert removed[:2] == ["uninstall", "--yes"]
    assert set(removed[2:4]) == {"jax_cuda13_plugin", "nvidia_cublas"}


# ./test.


def called(stdout: str) -> list[str]:
    prefix = "called: "
    lines = stdout.splitlines()
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


def test_test_checks_first_and_leaves_the_claims_out(ready: Checkout) -> None:
    answer = ready.call("test", "-n", "0")
    assert answer.returncode == 0
    assert called(answer.stdout) == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "pytest -m not claims -n 0",
    ]
    assert answer.stdout.splitlines()[-1].startswith("test: passed")


def test_test_uses_two_processes_where_there_are_two_cores(ready: Checkout) -> None:
    for cores, options in (("8", "-n 2 --dist loadfile --max-worker-restart=0 "), ("1", "")):
        write_command(ready.commands / "getconf", f"echo {cores}")
        answer = ready.call("test", "tests/core")
        assert called(answer.stdout)[-1] == f"pytest {options}-m not claims tests/core"


def test_test_runs_only_the_claims_when_asked(ready: Checkout) -> None:
    answer = ready.call("test", "--claims", "-x")
    assert called(answer.stdout)[-1] == "pytest -m claims -o faulthandler_timeout=0 tests/claims -x"


@pytest.mark.parametrize("tool", ["ruff", "mypy", "pytest"])
def test_test_fails_with_any_step_but_runs_them_all(ready: Checkout, tool: str) -> None:
    answer = ready.call("test", "-n0", FAILING_TOOL=tool)
    assert answer.returncode == 1
    assert len(called(answer.stdout)) == 4
    assert answer.stdout.splitlines()[-1].startswith(f"test: FAILED: {tool}")
