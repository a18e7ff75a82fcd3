import json
import subprocess
import sys

import pytest

SMALL = ["--blocks=300", "--requests=5", "--steps=12"]


@pytest.mark.browser
def test_every_step_of_the_run_is_played(tmp_path):
    command = [sys.executable, "-m", "benchmarks.view_frames", *SMALL, f"--results={tmp_path}"]
    subprocess.run(command, check=True)
    measured = json.loads((tmp_path / "view_frames.json").read_text())
    assert measured["steps"] == 12
    assert len(measured["drawing"]) >= 2
