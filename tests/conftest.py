import os
import shutil
from importlib.util import find_spec

import pytest
import torch
from interpreter import remember_builtins

if not torch.cuda.is_available():  # before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU, in NumPy
    if find_spec("triton"):
        remember_builtins()

from checkpoints import FAMILIES, QUANTIZED, write_checkpoint
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from recorded import record_trace

# Tests of their own groups: `make test-other-clients` and `make test-ray`.
collect_ignore = ["clients", "cluster"]

torch.set_num_threads(1)  # pytest-xdist runs a test per core
# The same examples each time, however slow the machine. To look for others:
# pytest --hypothesis-profile=exploring --hypothesis-seed=1
exploring = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("exploring", **exploring)
settings.register_profile("deterministic", derandomize=True, **exploring)
settings.load_profile("deterministic")
# Hypothesis would try constants of whatever modules were imported before: others in each process.
providers._get_local_constants = lambda: providers._local_constants


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a family's tiny checkpoint, written once."""
    folders = {}

    def folder_of(family):
        if family not in folders:
            folder = tmp_path_factory.mktemp(family)
            folders[family] = write_checkpoint(folder, {**FAMILIES, **QUANTIZED}[family])
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def trace(tmp_path_factory):
    """The file of a recorded run in which all happens that can be seen."""
    path = tmp_path_factory.mktemp("recorded") / "trace.jsonl"
    record_trace(path)
    return path


@pytest.fixture
def guesses_cost_nothing(monkeypatch):
    """Engines guess as much as they may, whatever guesses cost on this machine."""
    from minimal_vllm.speculation import allowance, pace

    monkeypatch.setattr(pace.CostMeter, "_fit", lambda _: pace.Costs(1.0, 0.0))
    monkeypatch.setattr(allowance.Allowance, "is_used_up", False)


@pytest.fixture(scope="module")
def chromium():
    """A browser. No longer than a module: while Playwright runs, no other event loop can."""
    from tests.lab.view.browser import browser  # Playwright is not everywhere where GPU tests run

    with browser() as chromium:
        yield chromium


NEEDS = {
    "gpu": ("NO GPU", torch.cuda.is_available()),
    "browser": ("NO CHROMIUM", shutil.which("chromium") is not None),
    "real": ("NO NETWORK", True),  # found out by the fixture that fetches the model
}
"""For each marker of what not every machine has: how its lack is called, and whether it is here."""


def pytest_collection_modifyitems(items):
    """Skip what can't be tested here."""
    for item in items:
        for marker, (lack, is_here) in NEEDS.items():
            if item.get_closest_marker(marker) and not is_here:
                item.add_marker(pytest.mark.skip(reason=f"{lack}: not tested here"))


def pytest_terminal_summary(terminalreporter):
    """Say so aloud: a run without them has proved nothing about the GPU, or about the page."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for lack, _ in NEEDS.values():
        count = sum(lack in reason for reason in skipped)
        if count:
            terminalreporter.write_line(f"{lack}: {count} tests were not run", yellow=True)
