"""All that the page links to is there, and nothing else is served."""

import re

import pytest
from fastapi.testclient import TestClient

from minimal_vllm.view.replay import replay_app
from minimal_vllm.view.routes import PAGE
from minimal_vllm.view.source import PACKAGE, find_lines

HTML = (PAGE / "index.html").read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r'(?:href|src)="(/view/[^"]+)"', HTML)))


@pytest.fixture(scope="module")
def client(trace):
    return TestClient(replay_app(trace))


@pytest.mark.parametrize("link", LINKS)
def test_a_link_leads_somewhere(client, link):
    answer = client.get(link)
    assert answer.status_code == 200, answer.text
    if "symbol=" in link:
        assert 'class="marked"' in answer.text


def test_every_module_that_is_imported_is_served(client):
    for module in PAGE.glob("*.js"):
        for name in re.findall(r'from "\./([\w.]+)"', module.read_text(encoding="utf-8")):
            assert client.get(f"/view/page/{name}").status_code == 200


def test_the_page_asks_nothing_of_any_other_server():
    texts = [path.read_text(encoding="utf-8") for path in PAGE.iterdir()]
    assert [url for text in texts for url in re.findall(r"https?://[^\s\"'`]+", text)] == []


@pytest.mark.parametrize(
    "path",
    [
        "/view/page/..%2Fsource.py",
        "/view/page/%2Fetc%2Fpasswd",
        "/view/source/..%2F..%2Fpyproject.toml",
        "/view/source/%2Fetc%2Fpasswd",
        "/view/source/demo/model/config.json",
        "/view/source/cache/block_pool.py?symbol=BlockPool.burn",
        "/view/docs/..%2FREADME.md",
    ],
)
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


def test_a_symbol_is_found_where_it_is_defined():
    path = PACKAGE / "cache" / "block_pool.py"
    first, last = find_lines(path, "BlockPool.allocate")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[first - 1].strip().startswith("def allocate(")
    assert lines[last - 1].strip() == "return blocks"
