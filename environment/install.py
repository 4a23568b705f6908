"""Makes the environment in .venv, or repairs what is there.

Called by ensure.sh with any Python 3.11 or newer when state.py finds the environment incomplete.
Standard library only.
"""

import collections
import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import state

PYTHON = os.path.join(state.VENV, "bin", "python")
# What must import before the environment counts as complete.
IMPORTS = (
    "jax, chex, jaxtyping, flax.nnx, optax, orbax.checkpoint, absl.flags, numpy, scipy, sklearn, "
    "skimage, PIL, matplotlib, tensorboardX, tqdm, rich, safetensors, networkx, pytest, xdist"
)
TAIL = 12  # lines of pip's output shown with a failure


class InstallError(Exception):
    """A failure that one line explains."""


def say(message: str) -> None:
    """One line for the person who waits; stdout belongs to the program that runs afterwards."""
    print(f"environment: {message}", file=sys.stderr, flush=True)


def canonical(name: str) -> str:
    """A package name as the registry compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """The pinned version of every package of requirements.txt."""
    found = re.findall(r"^([\w.-]+)==([^\s;#]+)", state.read(state.REQUIREMENTS), re.MULTILINE)
    return {canonical(name): version for name, version in found}


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Lets one process at a time work on .venv.

    The kernel holds the lock and drops it with the process, however that ends, so a lock left
    over by a killed run cannot exist.
    """
    descriptor = os.open(state.VENV + ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is installing, waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Inherited by pip: should this process be killed, the lock lasts until pip has ended too.
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def quiet(*command: str) -> subprocess.CompletedProcess[str]:
    """A command of the environment's interpreter, its output kept back."""
    return subprocess.run(
        [PYTHON, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def is_complete() -> bool:
    """Asks state.py under the interpreter of the environment."""
    try:
        return quiet("-E", "-s", "-S", state.__file__, "check").returncode == 0
    except OSError:
        return False


def installed_version() -> tuple[int, int] | None:
    """The version of the environment's interpreter; None unless it runs and has a pip."""
    program = "import pip.__main__, sys; print(*sys.version_info[:2])"
    try:
        answer = quiet("-I", "-c", program)
    except OSError:
        return None
    if answer.returncode != 0:
        return None
    major, minor = answer.stdout.split()
    return int(major), int(minor)


def create() -> None:
    """An empty environment with pip, whatever was there before."""
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"making .venv with Python {version}")
    command = [sys.executable, "-I", "-m", "venv", "--clear", state.VENV]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        lines = (made.stderr + made.stdout).strip().splitlines() or ["no reason given"]
        raise InstallError(f"cannot make .venv: {lines[-1]}")


def relocate() -> None:
    """Points the settings and scripts of an environment at where the checkout is now."""
    folder = pathlib.Path(state.VENV, "bin")
    if state.VENV in state.read(str(folder / "activate")):
        return
    quiet("-I", "-m", "venv", "--without-pip", state.VENV)
    # This form, unlike `#!/path/to/python`, bears spaces and any length.
    header = f"#!/bin/sh\n'''exec' \"{PYTHON}\" \"$0\" \"$@\"\n' '''\n".encode()
    old = re.compile(rb"#!(?:/bin/sh\n'''exec' )?[^\n]*/\.venv/bin/python[^\n]*\n(?:' '''\n)?")
    for script in folder.iterdir():
        if script.is_file() and not script.is_symlink():
            content = script.read_bytes()
            found = old.match(content)
            if found:
                script.write_bytes(header + content[found.end() :])


def is_damaged(distribution: importlib.metadata.Distribution) -> bool:
    """Whether a file that the package installed is gone or cut short."""
    files = distribution.files
    if not files:
        return True
    for file in files:
        # Scripts in bin/ name the interpreter and bytecode the source: both change legitimately.
        if file.parts[0] == ".." or file.suffix == ".pyc":
            continue
        try:
            size = os.stat(str(distribution.locate_file(file))).st_size
        except OSError:
            return True
        if file.size is not None and file.size != size:
            return True
    return False


def forget_damaged(version: tuple[int, int]) -> None:
    """Makes pip install again what an interruption or a deletion left incomplete."""
    pinned = pins()
    site = pathlib.Path(state.site_packages(version))
    for leftover in site.glob("~*"):  # pip's name for what it was replacing when it was stopped
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in site.glob("*.dist-info"):
        distribution = importlib.metadata.Distribution.at(folder)
        name = distribution.metadata["Name"] if (folder / "METADATA").exists() else None
        if name is None or (canonical(name) in pinned and is_damaged(distribution)):
            say(f"{name or folder.stem} is damaged, installing it again")
            shutil.rmtree(folder)


def pip(arguments: list[str], goal: str) -> None:
    """Runs pip with one line of progress; raises with the end of its output."""
    command = [PYTHON, "-I", "-u", "-m", "pip", *arguments]
    options = ["--disable-pip-version-check", "--no-input"]
    # In a virtual environment a user's `user = true` is an error.
    process = subprocess.Popen(
        command + options,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PIP_USER": "0"},
        close_fds=False,
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def drain() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=drain, daemon=True).start()
    tail: collections.deque[str] = collections.deque(maxlen=TAIL)
    terminal = sys.stderr.isatty()
    interval = 1.0 if terminal else 10.0
    started = time.monotonic()
    shown, seen, phase = started, 0, "resolving"
    line: str | None = ""
    try:
        while line is not None:
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=interval)
                if line:
                    tail.append(line)
                    if line.startswith(("Collecting ", "Requirement already satisfied")):
                        seen += 1
                        phase = f"{seen} packages resolved"
                    elif line.startswith("Installing collected packages"):
                        phase = f"{line.count(',') + 1} packages being unpacked"
            now = time.monotonic()
            if now - shown >= interval:
                shown = now
                text = f"{goal}: {phase}, {now - started:.0f} s"
                if terminal:
                    print(f"\r\033[Kenvironment: {text}", end="", file=sys.stderr, flush=True)
                else:
                    say(text)
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has interrupted pip as well
        raise
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    if status != 0:
        print("\n".join(f"  pip: {line}" for line in tail), file=sys.stderr)
        raise InstallError(f"{goal} failed (see pip above); the next call continues from here")


def install() -> None:
    """Brings the packages of the environment to the pinned versions."""
    pinned = pins()
    accelerator = state.accelerator()
    version = installed_version()
    if version is None:
        raise InstallError("the new .venv does not run")
    forget_damaged(version)
    with open(state.ACCELERATOR, "w", encoding="utf-8") as file:
        file.write(accelerator)
    arguments = ["install", "-r", state.REQUIREMENTS]
    if accelerator != "cpu":
        arguments.append(f"jax[{accelerator}]=={pinned['jax']}")
    goal = f"installing {len(pinned)} pinned packages ({accelerator})"
    say(f"{goal}, some minutes on a first run")
    pip(arguments, goal)
    if accelerator == "cpu":
        # jax uses a CUDA plugin whenever it finds one.
        site = pathlib.Path(state.site_packages(version))
        plugins = [
            folder.name.split("-")[0]
            for folder in site.glob("*.dist-info")
            if folder.name.startswith(("jax_cuda", "nvidia_"))
        ]
        if plugins:
            pip(["uninstall", "--yes", *plugins], "removing the CUDA packages")


def import_error() -> str | None:
    """The last line of what went wrong when importing the packages; None when nothing did."""
    answer = quiet("-I", "-c", f"import {IMPORTS}")
    if answer.returncode == 0:
        return None
    return (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]


def make() -> None:
    """A complete environment: from what exists where possible, else from nothing."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.remove(state.MARKER)
    version = installed_version()
    asked_for = sys.version_info[:2] if os.environ.get("PYTHON") else version
    fresh = version is None or version < (3, 11) or version != asked_for
    if fresh:
        create()
    else:
        relocate()
    install()
    error = import_error()
    if error is not None and not fresh:
        say(f"what was there cannot be repaired ({error})")
        create()
        install()
        error = import_error()
    if error is not None:
        raise InstallError(f"the installed packages do not import: {error}")
    recorded = quiet("-E", "-s", "-S", state.__file__, "record")
    if recorded.returncode != 0:
        raise InstallError(f"cannot write {state.MARKER}")
    say("complete")


def main() -> int:
    """The exit code: 0 for a complete environment."""
    # An activated .venv puts its own python3 first, which cannot rebuild itself.
    if sys.prefix != sys.base_prefix:
        base = sys._base_executable
        os.execv(base, [base, "-E", "-s", os.path.abspath(__file__)])
    try:
        with lock():
            if not is_complete():
                make()
    except InstallError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"cannot write the environment: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next call continues from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
