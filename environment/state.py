"""What a complete environment looks like, and whether .venv still looks like that.

Runs on every ./run under the environment's own interpreter, hence no import beyond os and sys
in the usual case.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
VENV = os.path.join(ROOT, ".venv")
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
# Written last: its absence means that the environment is half-made.
MARKER = os.path.join(VENV, "complete")
ACCELERATOR = os.path.join(VENV, "accelerator")


def read(path: str) -> str:
    """The text of a file, empty where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def accelerator() -> str:
    """The accelerator asked for; else the one installed; else the CPU."""
    return os.environ.get("ASYM_ACCELERATOR") or read(ACCELERATOR) or "cpu"


def site_packages(version: tuple[int, int]) -> str:
    """The folder of installed packages of a Python version."""
    return os.path.join(VENV, "lib", f"python{version[0]}.{version[1]}", "site-packages")


def wanted_version() -> tuple[int, ...]:
    """The (major, minor) version of the interpreter that PYTHON names."""
    import subprocess

    program = "import sys; print(*sys.version_info[:2])"
    answer = subprocess.run(
        [os.environ["PYTHON"], "-c", program], capture_output=True, text=True, check=True
    )
    return tuple(int(number) for number in answer.stdout.split())


def describe() -> str:
    """The state of the environment that the running interpreter belongs to.

    The listing of site-packages notices a package that was removed or left half-installed; the
    path of the checkout notices a move, which breaks the scripts in .venv/bin.
    """
    packages = set(os.listdir(site_packages(sys.version_info[:2]))) - {"__pycache__"}
    return "\n".join([sys.version, ROOT, accelerator(), read(REQUIREMENTS), *sorted(packages)])


def is_complete() -> bool:
    """Whether the environment is the one that was recorded, and the one asked for."""
    if os.environ.get("PYTHON") and wanted_version() != sys.version_info[:2]:
        return False
    return read(MARKER) == describe()


def record() -> None:
    """Declares the environment complete, at once or not at all."""
    partial = MARKER + ".partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(describe())
    os.replace(partial, MARKER)


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record()
    else:
        sys.exit(not is_complete())
