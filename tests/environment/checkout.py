"""A checkout in a temporary folder whose pip is a stub: no network, seconds instead of minutes."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BASE_PYTHON = pathlib.Path(os.path.realpath(sys.executable))
CANDIDATES = ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python"]

# Writes down its arguments; `install` unpacks the wheel beside it and writes a RECORD as pip does.
FAKE_PIP = """
import os, sys, time, zipfile

def main():
    site = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.environ["FAKE_PIP_LOG"], "a") as log:
        print(*sys.argv[1:], file=log)
    if os.environ.get("FAKE_PIP_FAILS"):
        print("ERROR: no route to the registry")
        return 1
    time.sleep(float(os.environ.get("FAKE_PIP_SECONDS", 0)))
    if sys.argv[1] == "install":
        with zipfile.ZipFile(os.environ["FAKE_PIP_WHEEL"]) as wheel:
            wheel.extractall(site)
    return 0

if __name__ == "__main__":
    sys.exit(main())
"""
# `python -m ruff` and the other tools of ./test: the stub notes the call and fails on demand.
TOOL = """
import os, sys
name = os.path.basename(os.path.dirname(os.path.abspath(__file__)))
print("called:", name, *sys.argv[1:], flush=True)
sys.exit(name == os.environ.get("FAILING_TOOL"))
"""
PAPER = """
import json, os, sys
print(json.dumps({"flags": sys.argv[1:], "folder": os.getcwd(), "process": os.getpid()}))
sys.exit(7 if "--fail" in sys.argv else 0)
"""


def required_modules() -> list[str]:
    """What install.py imports before it calls an environment complete."""
    tree = ast.parse((REPOSITORY / "environment" / "install.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "IMPORTS":
            return ast.literal_eval(node.value).split(", ")
    raise AssertionError("install.py defines no IMPORTS")


def write_wheel(path: pathlib.Path) -> None:
    """One wheel, jax 1.0, that holds an empty module for everything that must import."""
    files = {}
    for module in [*required_modules(), "ruff", "mypy"]:
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            files["/".join(parts[:depth]) + "/__init__.py"] = "# empty\n"
        files[parts[0] + "/__main__.py"] = TOOL
    information = "jax-1.0.dist-info"
    files[f"{information}/METADATA"] = "Metadata-Version: 2.1\nName: jax\nVersion: 1.0\n"
    files[f"{information}/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{name},,{len(content.encode())}\n" for name, content in files.items())
    files[f"{information}/RECORD"] = record + f"{information}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


def write_command(path: pathlib.Path, body: str) -> None:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


class Checkout:
    """The two commands, two small papers and a .venv that only lacks its packages."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.root = folder / "checkout"
        self.wheels = folder / "wheels"
        self.commands = folder / "commands"
        self.log = folder / "pip.log"
        for made in (self.root, self.wheels, self.commands):
            made.mkdir()
        self.wheel = self.wheels / "jax-1.0-py3-none-any.whl"
        write_wheel(self.wheel)
        for name in CANDIDATES:
            write_command(self.commands / name, f'exec "{BASE_PYTHON}" "$@"')
        for name in ("run", "test"):
            shutil.copy2(REPOSITORY / name, self.root / name)
        shutil.copytree(
            REPOSITORY / "environment",
            self.root / "environment",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (self.root / "requirements.txt").write_text("jax==1.0  # the only pin\n")
        experiments = self.root / "experiments"
        for paper in ("asl", "learning_to_fly", "common"):
            (experiments / paper).mkdir(parents=True)
            if paper != "common":
                (experiments / paper / "main.py").write_text(PAPER)
        (experiments / "__main__.py").write_text("print('papers: asl, learning_to_fly')\n")
        self.venv = self.root / ".venv"
        self.marker = self.venv / "complete"
        # By hand: `python -m venv` is most of what a test would otherwise take.
        self.site = self.venv / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
        pip = self.site / "pip"
        pip.mkdir(parents=True)
        (self.venv / "bin").mkdir()
        (self.venv / "bin" / "python").symlink_to(BASE_PYTHON)
        (self.venv / "bin" / "activate").write_text(f"VIRTUAL_ENV={self.venv}\n")
        (self.venv / "pyvenv.cfg").write_text(f"home = {BASE_PYTHON.parent}\n")
        (pip / "__init__.py").touch()
        (pip / "__main__.py").write_text(FAKE_PIP)

    @property
    def calls(self) -> list[str]:
        """The arguments of every call of the stub."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def environment(self, **variables: str) -> dict[str, str]:
        """Variables for a command: the stubs first on PATH, a wheel folder as the registry."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_", "PYTHON", "ASYM_"))
        }
        return {
            **inherited,
            "PATH": f"{self.commands}{os.pathsep}{os.environ['PATH']}",
            "FAKE_PIP_LOG": str(self.log),
            "FAKE_PIP_WHEEL": str(self.wheel),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            **variables,
        }

    def start(
        self, *command: str, cwd: pathlib.Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """A command of the checkout, running."""
        return subprocess.Popen(
            [str(self.root / command[0]), *command[1:]],
            cwd=cwd or self.root,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(
        self, *command: str, cwd: pathlib.Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """A command of the checkout, ended."""
        process = self.start(*command, cwd=cwd, **variables)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
