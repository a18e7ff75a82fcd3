"""The site, built once for all tests of it."""

import json
import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from filelock import FileLock

from tests.markdown import ROOT

DOCS = ROOT / "docs"
BUILT = "built"
"""Name of the file that says that the site was built without an error."""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the built site, which is built once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / BUILT).exists():
            build(folder)
            (folder / BUILT).touch()
    return folder


def build(folder):
    options = ["-W", "--keep-going", "-n", "-q", "-b", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(folder)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT)
    assert result.returncode == 0, result.stderr


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):
    """The address of a web server that the site's pages come from."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def python_in_site(site):
    """Skips a test if the site was built without Python for browsers."""
    files = json.loads((site / "python" / "files.json").read_text())
    if not files["wheels"]:
        pytest.skip("NO NETWORK: the site has no Python for browsers, so it was not tested")
