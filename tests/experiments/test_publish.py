"""The READMEs say what the committed results say, and the list of papers is complete."""

import json
import re

import pytest

from experiments import __main__ as listing
from experiments.common import publish
from experiments.common.errors import UserError

ROOT = publish.ROOT


def test_tables_are_those_of_the_committed_results():
    for path, text in publish.pages().items():
        assert path.read_text() == text, f"{path}: run python -m experiments.common.publish"


@pytest.mark.parametrize("slug", listing.papers())
def test_a_paper_is_complete(slug):
    folder = ROOT / "experiments" / slug
    results = json.loads((folder / "results" / "results.json").read_text())
    assert results["preset"] == "quick"
    assert results["claims"]
    for figure in results["figures"]:
        assert (folder / "results" / figure).read_bytes().startswith((b"\x89PNG", b"GIF89a"))
    assert (ROOT / "colabs" / f"{slug}.ipynb").exists()
    assert (ROOT / "tests" / "golden" / "vectors" / f"{slug}.npz").exists()
    assert re.search(rf"^% {slug}$", (ROOT / "CITATIONS.bib").read_text(), re.MULTILINE)
    assert f"\n| {slug} |" in (ROOT / "WORKSPACE.md").read_text()
    assert listing.summary(slug)
    assert "claims hold" in listing.status(slug)


def test_every_link_of_the_pages_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("experiments/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_markers_are_needed():
    assert publish.replaced("a <!-- x -->old<!-- /x --> b", "x", "new") == (
        "a <!-- x -->\nnew\n<!-- /x --> b"
    )
    with pytest.raises(UserError, match="no <!-- x -->"):
        publish.replaced("a", "x", "new")


def test_only_a_run_of_the_paper_is_published(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps({"slug": "other", "figures": []}))
    assert publish.main(["asl", str(tmp_path)]) == 2
    assert "is a run of other" in capsys.readouterr().err
    assert publish.main(["asl", str(tmp_path / "none")]) == 2
    assert publish.main(["asl"]) == 2


def test_the_list(capsys):
    listing.main()
    printed = capsys.readouterr().out
    for slug in listing.papers():
        assert f"  {slug} " in printed
