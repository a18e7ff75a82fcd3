"""Starts the servers that the clients of this folder talk to, in the environment that has PyTorch.

It writes their URLs on one line, and ends them when its standard input ends.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.server.harness import process
from tests.server.scripted import script_server


def main():
    with (
        TemporaryDirectory() as folder,
        process() as demo,
        script_server(Path(folder) / "script") as script,
    ):
        print(json.dumps({"demo": demo.url, "script": script.url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
