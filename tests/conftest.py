import os

import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint
from hypothesis import settings

torch.set_num_threads(1)  # pytest-xdist runs a test per core
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU, in NumPy
settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a family's tiny checkpoint, written once."""
    folders = {}

    def folder_of(family):
        if family not in folders:
            folder = tmp_path_factory.mktemp(family)
            folders[family] = write_checkpoint(folder, FAMILIES[family])
        return folders[family]

    return folder_of


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="NO GPU: not tested here"))


def pytest_terminal_summary(terminalreporter):
    """Say so aloud: a run without them has proved nothing about the GPU."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "NO GPU" in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"NO GPU: {len(skipped)} tests were not run", yellow=True)
