"""The command as a process: what only a real shell would notice."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from checkpoints import FAMILIES, write_checkpoint

from minimal_vllm import __version__

COMMAND = [sys.executable, "-m", "minimal_vllm"]


@pytest.fixture
def heeding_ctrl_c():
    """Let processes begin with SIGINT's default action.

    A shell starts a background job with SIGINT ignored, and its children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(model, heeding_ctrl_c):
    """Start ``generate``, on the tiny model."""
    processes = []

    def start(*arguments, model=model, blocks=64, **options):
        engine = [f"--model={model}", f"--num-gpu-blocks-override={blocks}"]
        command = [*COMMAND, "generate", *engine, *arguments]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, **{**pipes, **options}))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_way_to_help_imports_no_torch():
    program = (
        "import sys\nfrom minimal_vllm.cli.main import main\n"
        "main(['generate', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'jinja2', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_the_version_is_the_package_s():
    output = subprocess.run([*COMMAND, "--version"], check=True, capture_output=True, text=True)
    assert output.stdout.endswith(f" {__version__}\n")


def test_a_process_reads_stdin_and_writes_json(start):
    process = start("--json", "--max-tokens=3", stdin=subprocess.PIPE)
    stdout, stderr = process.communicate("thé 🦙\n".encode())
    assert (process.returncode, stderr) == (0, b"")
    assert json.loads(stdout)["prompt"] == "thé 🦙"


def test_an_error_is_no_traceback(start):
    process = start("--max-model-len=5000", "the")
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (2, b"")
    assert stderr.startswith(b"minimal-vllm: error: max_model_len is 5000")
    assert stderr.count(b"\n") == 1


@pytest.fixture
def endless(start, tmp_path):
    """``generate`` on a model that knows so many positions that it does not come to an end."""
    num_positions = 50_000
    model = write_checkpoint(
        tmp_path, {**FAMILIES["llama"], "max_position_embeddings": num_positions}
    )
    arguments = ["--max-tokens=none", "--ignore-eos", "the"]
    return start(*arguments, model=model, blocks=num_positions // 16)


def test_text_is_streamed_and_ctrl_c_ends_quietly(endless):
    assert endless.stdout.read(1)
    endless.send_signal(signal.SIGINT)
    _, stderr = endless.communicate()
    assert (endless.returncode, stderr) == (130, b"")


INTERRUPTED_BY_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            del sys.meta_path[0]
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from minimal_vllm.__main__ import main
sys.argv[:2] = ["minimal-vllm"]
main()
print("it went on")
"""


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("click", ["info"]),
        ("minimal_vllm.sampling_params", ["generate", "the"]),
        ("minimal_vllm_lab.commands.learn", ["learn"]),
        ("torch", ["generate", "the"]),
    ],
)
def test_ctrl_c_while_a_command_is_imported_ends_it_quietly(module, command):
    interrupted = INTERRUPTED_BY_IMPORT.replace("sys.argv[1]", repr(module))
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + interrupted
    )
    ended = subprocess.run([sys.executable, "-c", program, "-", *command], capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


def test_a_command_in_the_background_is_not_ended_by_ctrl_c():
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED_BY_IMPORT
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "click", "--version"], capture_output=True
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_reader_that_has_seen_enough_is_no_error(endless):
    assert endless.stdout.read(1)
    endless.stdout.close()
    assert endless.stderr.read() == b""
    assert endless.wait() == 1


def test_a_terminal_shows_prompt_and_completion_as_one_text(start):
    ours, theirs = pty.openpty()
    process = start("--max-tokens=3", "the prompt", stdout=theirs)
    process.wait()
    os.close(theirs)
    shown = os.read(ours, 1000).decode(errors="replace")
    os.close(ours)
    assert shown.startswith("\x1b[2mthe prompt\x1b[0m")
    assert len(shown) > len("\x1b[2mthe prompt\x1b[0m\r\n")
