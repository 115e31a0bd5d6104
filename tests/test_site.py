"""Every snippet of the documents runs, and every notebook; the site itself is built in .ci/run."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Pages with snippets that are not run here, and where else they are true.
ELSEWHERE = {
    "CONTRIBUTING.md": "the outline of every experiment's run, which tests/experiments run",
    "experiments/jose/README.md": "the row of a table, hours on 20 Newsgroups",
    "zoo/capture/README.md": "tests/capture/test_readme.py",
}


def cells(path, kind):
    notebook = json.loads(path.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_no_page_has_a_snippet_that_nothing_runs():
    pages = {path for path in ROOT.glob("**/*.md") if BLOCK.search(path.read_text())}
    hidden = {path for path in pages if path.relative_to(ROOT).parts[0] in (".venv", "tests")}
    hidden |= set(ROOT.glob("zoo/weights/*.md"))  # tests/test_trained.py
    names = {path.relative_to(ROOT).as_posix() for path in pages - hidden - set(PAGES)}
    assert names == set(ELSEWHERE)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=() if page.stem == "README" else pytest.mark.slow)
        for page in PAGES
        if BLOCK.search(page.read_text())
    ],
)
def test_snippets_run(page):
    for code in BLOCK.findall(page.read_text()):
        exec(compile(code, str(page), "exec"), {"__name__": "snippet"})


def test_there_is_a_page_and_a_notebook_for_every_idea():
    pages = {page.stem for page in ROOT.glob("docs/ideas/*.md")}
    assert pages == {path.stem for path in NOTEBOOKS}
    assert len(pages) == 8
    for name in pages:
        text = (ROOT / "docs" / "ideas" / f"{name}.md").read_text()
        for part in ("$$", "![", "```python", "<!-- table:", "## Traps", "## Rivals"):
            assert part in text, f"docs/ideas/{name}.md has no {part}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_begin_with_the_installation(path):
    assert path.stat().st_size < 10_000, "clear the outputs before the notebook is committed"
    assert re.match(r"%pip install -q 'kexue-zoo(\[[\w,]+\])?'$", cells(path, "code")[0])
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", "".join(cells(path, "markdown"))):
        assert (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    from matplotlib import pyplot

    names = {"__name__": "notebook"}
    for code in cells(path, "code")[1:]:
        exec(compile(code, str(path), "exec"), names)
    pyplot.close("all")
