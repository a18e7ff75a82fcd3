"""The program of an HTTP process."""

import subprocess
import sys

IMPORTS = """
import sys
import minimal_vllm.server.processes.__main__
print(*(name for name in ("torch", "transformers", "triton") if name in sys.modules))
"""


def test_an_http_process_imports_no_torch_which_would_take_seconds_and_300_mb():
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
