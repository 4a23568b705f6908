"""Every notebook runs at smoke size, and the committed pages are clean."""

import ast
import platform
import re

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from experiments import __main__ as listing
from experiments.common import report

NOTEBOOKS = sorted((report.REPOSITORY / "colabs").glob("*.ipynb"))
LONGEST_FUNCTION = 15
LARGEST_BYTES = 600_000
LOCAL_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|var|mnt|Users|private)/|[A-Z]:\\Users")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def texts(output):
    """What an output says in words; pictures are left out, their base64 may spell anything."""
    named = [output.get("text", "")]
    named += [v for kind, v in output.get("data", {}).items() if not kind.startswith("image/")]
    return named


def problems_of_outputs(book):
    found = []
    for number, cell in enumerate(code_cells(book)):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"cell {number}: {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"cell {number}: noise on stderr")
            for text in map(str, texts(output)):
                if LOCAL_PATH.search(text):
                    found.append(f"cell {number}: a path of one machine")
                if re.search(rf"\b{re.escape(platform.node())}\b", text):
                    found.append(f"cell {number}: the name of a machine")
    return found


def long_functions(book):
    found = []
    for cell in code_cells(book):
        # Magics are no Python.
        lines = [re.sub(r"^\s*[%!].*", "", line) for line in cell.source.splitlines()]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    found.append(f"{node.name}: {length} lines")
    return found


def execute(book, folder, monkeypatch):
    """Run a notebook with this interpreter, whatever kernels the machine has."""
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(report.REPOSITORY))
    kernels = KernelSpecManager(kernel_dirs=[])
    client = NotebookClient(
        book,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels),
        timeout=600,
        resources={"metadata": {"path": str(folder)}},
    )
    # The kernel manager is ours, so closing it must be asked for.
    client.execute(cleanup_kc=True)
    return book


def test_every_experiment_has_a_notebook():
    assert [path.stem for path in NOTEBOOKS] == listing.papers()


@each_notebook
def test_it_runs_at_smoke_size(path, tmp_path, monkeypatch):
    book = read(path)
    (parameters,) = [c for c in code_cells(book) if "parameters" in c.metadata.get("tags", [])]
    assert 'PRESET = "smoke"' in parameters.source
    done = execute(book, tmp_path, monkeypatch)
    assert all(cell.execution_count for cell in code_cells(done) if cell.source.strip())
    assert not [problem for problem in problems_of_outputs(done) if "stderr" not in problem]


@each_notebook
def test_the_committed_page_is_clean(path):
    book = read(path)
    nbformat.validate(book)
    counts = [cell.execution_count for cell in code_cells(book)]
    assert counts == list(range(1, len(counts) + 1))
    assert problems_of_outputs(book) == []
    assert book.metadata.kernelspec.name == "python3"
    assert set(book.metadata) <= {"kernelspec", "language_info", "colab"}
    assert not LOCAL_PATH.search("\n".join(cell.source for cell in book.cells))
    assert path.stat().st_size < LARGEST_BYTES


@each_notebook
def test_the_code_is_in_the_package(path):
    assert long_functions(read(path)) == []


@each_notebook
def test_it_explains_and_cites(path):
    book = read(path)
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    for part in ("$$", "arxiv.org/abs/", "## Exercises", "```bibtex"):
        assert part in prose
    entries = (report.REPOSITORY / "CITATIONS.bib").read_text()
    key = re.search(r"@\w+\{([\w:-]+),", prose).group(1)
    assert f"{{{key}," in entries


def test_what_the_checks_find(tmp_path, monkeypatch):
    source = "import sys\nprint('/tmp/x')\nprint('oh', file=sys.stderr)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    found = problems_of_outputs(execute(book, tmp_path, monkeypatch))
    assert sorted(found) == ["cell 0: a path of one machine", "cell 0: noise on stderr"]
    book.cells[0].source = "def f():\n" + "    pass\n" * LONGEST_FUNCTION
    assert long_functions(book) == ["f: 16 lines"]
    book.cells[0].source = "%matplotlib inline\n!ls\nx = 1"
    assert long_functions(book) == []
    assert not LOCAL_PATH.search("https://example.org/work/home/ and experiments/tmp/x")


def test_an_error_in_a_notebook_is_found(tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise RuntimeError('no')")])
    with pytest.raises(CellExecutionError) as caught:
        execute(book, tmp_path, monkeypatch)
    assert (caught.value.ename, caught.value.evalue) == ("RuntimeError", "no")
    assert problems_of_outputs(book) == ["cell 0: RuntimeError"]
