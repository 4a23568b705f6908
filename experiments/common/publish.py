"""Commit a run: its results and figures into the paper's folder, its tables into the READMEs.

    python -m experiments.common.publish asl runs/asl/quick    # copy a finished run, then:
    python -m experiments.common.publish                       # make every table again

Tables stand between `<!-- name -->` and `<!-- /name -->`; what stands there is made from
results.json alone, and a test keeps it so.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import __main__ as listing
from experiments.common import files, report
from experiments.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def replaced(text: str, name: str, content: str) -> str:
    """A text with the part between two markers replaced.

    Args:
      text: Markdown.
      name: Name of the markers.
      content: What shall stand between them.

    Returns:
      The new text.

    Raises:
      UserError: The markers are missing.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise UserError(f"no {begin} ... {end} in the text")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n{content.strip()}\n{end}{rest.split(end, 1)[1]}"


def paper_tables(results: Mapping[str, Any]) -> str:
    """The measured part of a paper's README.

    Args:
      results: A results.json.

    Returns:
      Markdown: the methods, the claims, and how they were measured.
    """
    methods = report.markdown(*report.results_rows(results))
    return "\n".join([methods, report.markdown(*report.claim_rows(results)), _how(results)])


def side_table(results: Mapping[str, Any]) -> str:
    """The table of a further run, whose claims are reported and not judged.

    Args:
      results: A results.json.

    Returns:
      Markdown: the methods, and how they were measured.
    """
    return "\n".join([report.markdown(*report.results_rows(results)), _how(results)])


def _how(results: Mapping[str, Any]) -> str:
    seeds = results["seeds"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    cores = results["cpu_cores"]
    return (
        f"Measured by `{results['command']}`, seeds {seeds[0]}–{seeds[-1]}, mean ± standard error, "
        f"in {results['wall_seconds'] / 60:.1f} minutes on {results['device']}, "
        f"{cores} core{'' if cores == 1 else 's'}; {versions}."
    )


def overview(all_results: Sequence[Mapping[str, Any]]) -> str:
    """The table of papers of the root README.

    Args:
      all_results: One results.json a paper.

    Returns:
      Markdown.
    """
    rows = []
    for results in all_results:
        slug = results["slug"]
        judged = [c["holds"] for c in results["claims"] if c["holds"] is not None]
        rows.append(
            [
                f"[{slug}](experiments/{slug}/README.md)",
                f"{results['title']} ({results['citation'].split('. ')[-2]})",
                listing.summary(slug),
                f"{sum(judged)} of {len(judged)}",
                f"{results['wall_seconds'] / 60:.0f} min",
                f"[notebook](colabs/{slug}.ipynb)",
            ]
        )
    header = ["paper", "title", "what is asymmetric", "claims that hold", "quick run", "read"]
    return report.markdown(header, rows)


def stored_results(slug: str) -> Path:
    """Where a paper's committed results live.

    Args:
      slug: The paper.

    Returns:
      The path of its results.json.
    """
    return ROOT / "experiments" / slug / "results" / "results.json"


def pages() -> dict[Path, str]:
    """Every README with its tables made afresh.

    Returns:
      Path to text.
    """
    made = {}
    published = [s for s in listing.papers() if stored_results(s).exists()]
    results = [json.loads(stored_results(slug).read_text()) for slug in published]
    for slug, one in zip(published, results, strict=True):
        path = ROOT / "experiments" / slug / "README.md"
        text = replaced(path.read_text(), "results", paper_tables(one))
        # Further runs, such as one on real data: results/<name>.json fills the markers <name>.
        for side in sorted(stored_results(slug).parent.glob("*.json")):
            if side.name != "results.json":
                text = replaced(text, side.stem, side_table(json.loads(side.read_text())))
        made[path] = text
    readme = ROOT / "README.md"
    made[readme] = replaced(readme.read_text(), "papers", overview(results))
    return made


def copy_run(slug: str, workdir: Path) -> None:
    """Take over the results and figures of a finished run.

    Args:
      slug: The paper.
      workdir: The run's folder.

    Raises:
      UserError: It is not a finished run of this paper.
    """
    results = files.read_json(workdir / "results.json")
    if results["slug"] != slug:
        raise UserError(f"{workdir} is a run of {results['slug']}, not of {slug}")
    target = stored_results(slug).parent
    target.mkdir(exist_ok=True)
    files.write_json(target / "results.json", results)
    for name in results["figures"]:
        shutil.copyfile(workdir / "figures" / name, target / name)


def main(words: Sequence[str]) -> int:
    """See the module's docstring.

    Args:
      words: Nothing, or a paper and the folder of its finished run.

    Returns:
      The exit code.
    """
    try:
        if len(words) == 2:
            copy_run(words[0], Path(words[1]))
        elif words:
            raise UserError("usage: python -m experiments.common.publish [paper workdir]")
        for path, text in pages().items():
            files.write_bytes(path, text.encode())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
