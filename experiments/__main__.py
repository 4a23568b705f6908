"""`python -m experiments` (and `./run` alone): the papers, one line each."""

import ast
import json
from pathlib import Path

_HERE = Path(__file__).parent


def papers() -> list[str]:
    """The slugs of all papers that have a binary, in alphabetical order."""
    return sorted(p.parent.name for p in _HERE.glob("*/main.py"))


def summary(slug: str) -> str:
    """The first line of a paper's package docstring.

    Args:
      slug: The paper.

    Returns:
      One line; nothing of the paper is imported for it.
    """
    tree = ast.parse((_HERE / slug / "__init__.py").read_text())
    return (ast.get_docstring(tree) or "").splitlines()[0]


def status(slug: str) -> str:
    """How the committed quick run came out.

    Args:
      slug: The paper.

    Returns:
      For instance "9 of 9 claims hold".
    """
    path = _HERE / slug / "results" / "results.json"
    if not path.exists():
        return "no committed results"
    verdicts = [c["holds"] for c in json.loads(path.read_text())["claims"]]
    judged = [v for v in verdicts if v is not None]
    return f"{sum(judged)} of {len(judged)} claims hold"


def main() -> None:
    """Print the list."""
    slugs = papers()
    width = max(map(len, slugs))
    print("Papers (./run <paper> runs one, ./run <paper> --help tells its flags):\n")
    for slug in slugs:
        print(f"  {slug:{width}}  {summary(slug)} [{status(slug)}]")


if __name__ == "__main__":
    main()
