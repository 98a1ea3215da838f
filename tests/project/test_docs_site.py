"""The documentation's site, as `make docs` builds it."""

import subprocess
import sys

import pytest

from support.pages import DOCS
from support.paths import ROOT

for package in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
    pytest.importorskip(package, reason="pip install '.[docs]' has what builds the site")


def build(source, folder):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(source), str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_site_builds_without_a_warning(tmp_path):
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gradient_flow" in (tmp_path / "searchindex.js").read_text()


def test_a_dead_reference_stops_the_build(tmp_path):
    source = tmp_path / "docs"
    source.mkdir()
    settings = (DOCS / "conf.py").read_text().replace("Path(__file__).resolve().parent.parent", f"Path({str(ROOT)!r})")
    (source / "conf.py").write_text(settings.replace('html_static_path = ["_static"]', ""))
    (source / "index.md").write_text("# Page\n\n[gone](gone.md) {py:func}`fused_rnn.gone`\n")
    done = build(source, tmp_path / "site")
    assert done.returncode != 0
    assert "gone.md" in done.stderr
    assert "fused_rnn.gone" in done.stderr
