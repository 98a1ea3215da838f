"""The documentation: its snippets run, its links lead somewhere, and the reference has every public name."""

import contextlib
import importlib.util
import inspect
import io
import re
import sys
from pathlib import Path

import pytest
import torch

import fused_rnn
from benchmarks.suites import EFFORTS
from fused_rnn import functional, init
from support import pages
from support.pages import DOCS
from support.paths import ROOT

WITH_SNIPPETS = [page for page in pages.pages() if pages.snippets(page) and page.name != "CONTRIBUTING.md"]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


# ---- snippets --------------------------------------------------------------------------------------------------------


# Of other packages, about themselves.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*copyreg.*:FutureWarning")
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_snippets_run(page, tmp_path, monkeypatch):
    """The blocks of a page one after another, in one fresh namespace; a warning is an error."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    missing = run_snippets(page)
    assert torch.get_num_threads() == threads, "a page has to put back what it sets"
    if missing:
        pytest.skip(f"{name_of(page)} ran, but for what needs {', '.join(missing)}: not installed")


def run_snippets(page: Path) -> list[str]:
    """Returns the packages that were missing for some of the blocks."""
    names = {"__name__": "snippets"}
    lacking = []
    for snippet in pages.snippets(page):
        missing = [package for package in snippet.needs if importlib.util.find_spec(package) is None]
        lacking += missing
        if not missing:
            source = "\n" * snippet.line + snippet.source  # so that tracebacks have the page's own lines
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, str(page), "exec"), names)
    return list(dict.fromkeys(lacking))


def test_a_snippet_that_fails_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n<!-- needs: no_such_package -->\n```python\n1 / 0\n```\n")
    assert run_snippets(page) == ["no_such_package"]
    page.write_text("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        run_snippets(page)
    assert failure.traceback[-1].lineno == 5


def test_the_duration_of_the_benchmarks_is_that_of_the_command():
    page = (DOCS / "performance.md").read_text()
    for effort in EFFORTS.values():
        assert f"in {effort.expected}" in page


def test_every_how_to_has_a_snippet():
    without = {page.name for page in (DOCS / "how-to").glob("*.md") if not pages.snippets(page)}
    assert without == {"index.md"}


# ---- links -----------------------------------------------------------------------------------------------------------


def dead_links(page: Path) -> list[str]:
    """Relative links to files or headings that do not exist."""
    dead = []
    for link in pages.links(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in pages.anchors(with_included(target))):
            dead.append(link)
    return dead


def with_included(page: Path) -> str:
    """A page's text with that of the pages that it includes."""
    text = page.read_text()
    included = re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE)
    return "\n".join([text, *((page.parent / name).read_text() for name in included)])


@pytest.mark.parametrize("page", pages.pages(), ids=name_of)
def test_links_lead_somewhere(page):
    assert not dead_links(page)


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A *heading*, `code`\n[a](#a-heading-code) [b](page.md#no) ![c](c.svg) [d](https://e.org) `[e](f)`"
    )
    assert dead_links(page) == ["page.md#no", "c.svg"]


# ---- the reference ---------------------------------------------------------------------------------------------------


def public_names() -> set[str]:
    names = {f"fused_rnn.{name}" for name in fused_rnn.__all__ if name != "__version__"}
    names |= {f"fused_rnn.{kind.__name__}" for kind in fused_rnn._RESULTS} | {"fused_rnn.onnx"}
    for module in (functional, init, fused_rnn.onnx):
        names |= {f"{module.__name__}.{name}" for name in module.__all__}
    return names | {f"fused_rnn.reference.{name}" for name in ("lstm", "gru", "rnn")}


def documented_names() -> set[str]:
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    return set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", text, re.MULTILINE))


def test_the_reference_has_every_public_name():
    assert documented_names() == public_names()


def test_public_names_have_docstrings():
    for name in public_names():
        owner, _, last = name.rpartition(".")
        thing = sys.modules[name] if name in sys.modules else getattr(sys.modules[owner], last)
        assert inspect.getdoc(thing), name
