"""Everything that the page links to exists, and nothing else is served."""

import re
import shutil
import tomllib
from html import unescape
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from minimal_vllm_lab.view import document
from minimal_vllm_lab.view.replay import replay_app
from minimal_vllm_lab.view.routes import PAGE
from minimal_vllm_lab.view.source import PACKAGE, SOURCE_ROOT, find_lines
from tests.markdown import ROOT

HTML = (PAGE / "index.html").read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r'(?:href|src)="(/view/[^"]+)"', HTML)))


@pytest.fixture(scope="module")
def client(trace):
    return TestClient(replay_app(trace))


@pytest.mark.parametrize("link", LINKS)
def test_every_link_of_the_page_works(client, link):
    answer = client.get(link)
    assert answer.status_code == 200, answer.text
    if "symbol=" in link:
        assert 'class="marked"' in answer.text


@pytest.fixture(scope="module", params=["in the repository", "installed"])
def docs(request, tmp_path_factory):
    """The documents in the repository, and the documents in the wheel."""
    if request.param == "in the repository":
        yield document.DOCS
        return
    folder = tmp_path_factory.mktemp("wheel")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for path, place in included.items():
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / path, folder / place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            document, "DOCS", folder / document.INSTALLED_DOCS.relative_to(PACKAGE.parent)
        )
        yield document.DOCS


def links_within(client, url):
    """Return the links of a page as addresses on this server."""
    found = re.findall(r'(?:href|src)="([^"]*)"', client.get(url).text)
    return {urljoin(url, unescape(link)) for link in found if not re.match(r"\w+:", link)}


def test_every_link_of_a_document_works_in_the_repository_and_in_the_wheel(client, docs):
    start = {link for link in LINKS if link.startswith("/view/docs/")}
    seen, to_see = set(), set(start)
    while to_see:
        link = to_see.pop()
        seen.add(link)
        path, _, heading = link.partition("#")
        answer = client.get(path)
        assert answer.status_code == 200, link
        if heading:
            assert f'id="{heading}"' in answer.text, link
        if path.endswith(".md"):
            to_see |= links_within(client, path) - seen
    chapters = {f"/view/docs/course/{each.name}" for each in (docs / "course").glob("*.md")}
    assert len(chapters) >= 15
    assert chapters <= seen


def test_a_document_shows_the_code_that_it_includes(client, docs):
    count = 0
    for path in sorted((docs / "course").glob("*.md")):
        includes = re.findall(r"```\{literalinclude\}(.*?)```", path.read_text("utf-8"), re.S)
        html = client.get(f"/view/docs/course/{path.name}").text
        shown = re.findall(r'<p class="origin">.*?<code>(.*?)</code>', html, re.S)
        for wanted, code in zip(includes, shown, strict=True):
            options = dict(re.findall(r"^:([\w-]+): (.*)$", wanted, re.M))
            first = options.get("start-at") or options.get("pyobject", "").rpartition(".")[2]
            assert first.strip('"') in unescape(code).partition("\n")[0]
            if "end-before" in options:
                assert options["end-before"].strip('"') not in unescape(code)
            count += 1
    assert count > 50


def test_a_document_shows_formulas_and_pictures_and_nothing_raw(client, docs):
    num_formulas = num_pictures = 0
    for path in sorted((docs / "course").glob("*.md")):
        text = path.read_text("utf-8")
        html = client.get(f"/view/docs/course/{path.name}").text
        assert html.count('<div class="formula"><math') == text.count("```math\n")
        assert html.count('src="/view/docs/images/panels/') == text.count("](../images/panels/")
        assert "<merror" not in html
        assert re.findall(r"\\(?:frac|text|begin|sum)|language-(?:math|\{)", html) == []
        num_formulas += html.count("<math")
        num_pictures += html.count("/images/panels/")
    assert (num_formulas > 20, num_pictures) == (True, 6)


def test_every_imported_module_is_served(client):
    for module in PAGE.glob("*.js"):
        for name in re.findall(r'from "\./([\w.]+)"', module.read_text(encoding="utf-8")):
            assert client.get(f"/view/page/{name}").status_code == 200


def test_the_page_uses_no_other_server():
    texts = [path.read_text(encoding="utf-8") for path in PAGE.iterdir()]
    assert [url for text in texts for url in re.findall(r"https?://[^\s\"'`]+", text)] == []


@pytest.mark.parametrize(
    "path",
    [
        "/view/page/..%2Fsource.py",
        "/view/page/%2Fetc%2Fpasswd",
        "/view/source/..%2F..%2Fpyproject.toml",
        "/view/source/%2Fetc%2Fpasswd",
        "/view/source/minimal_vllm/demo/model/config.json",
        "/view/source/minimal_vllm/cache/block_pool.py?symbol=BlockPool.burn",
        "/view/docs/..%2FREADME.md",
        "/view/docs/..%2Fpyproject.toml",
        "/view/docs/course/..%2F..%2F..%2FREADME.md",
        "/view/docs/images/..%2F..%2FREADME.md%2Fx.svg",
        "/view/docs/notebooks/kv_cache.ipynb",
    ],
)
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


def test_a_symbol_is_found_where_it_is_defined():
    path = SOURCE_ROOT / "minimal_vllm" / "cache" / "block_pool.py"
    first, last = find_lines(path, "BlockPool.allocate")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[first - 1].strip().startswith("def allocate(")
    assert lines[last - 1].strip() == "return blocks"
