"""The site can be built, strictly: links lead somewhere, pages are listed, notebooks run."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pytest

from tests.markdown import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("docs") / "html"
    options = ["-W", "--keep-going", "-n", "-q", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return folder


class Links(HTMLParser):
    """The addresses that a page links to, and the places in it that can be linked to."""

    def __init__(self, page):
        super().__init__()
        self.targets, self.ids = set(), set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.targets |= {attributes[name] for name in ("href", "src") if attributes.get(name)}


def test_every_link_within_the_site_leads_to_a_place_that_exists(site):
    pages = {page: Links(page) for page in site.rglob("*.html")}
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            path, _, anchor = unquote(target).partition("#")
            file = (page.parent / path.partition("?")[0]).resolve() if path else page
            if "://" in target or target.startswith(("data:", "mailto:")):
                continue
            if not file.exists() or (anchor and anchor not in pages[file].ids):
                broken.append((page.relative_to(site).as_posix(), target))
    assert broken == []


def test_a_page_needs_nothing_from_other_sites(site):
    loaded = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)')
    assert {
        url for page in site.rglob("*.html") for url in loaded.findall(page.read_text())
    } == set()


@pytest.mark.parametrize("path", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_kept_without_what_it_prints(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
