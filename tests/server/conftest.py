import pytest
from checkpoints import write_tool_checkpoint

from minimal_vllm import LLM, SamplingParams
from tests.server.harness import FEW_BLOCKS, TOOL_MODEL, process
from tests.server.scripted import script_server


@pytest.fixture(scope="session")
def server():
    """A server with the built-in model, in a process of its own."""
    with process("--scheduling-policy=priority", "--trust-request-chat-template") as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def llm():
    """The same model without a server, to compare with."""
    return LLM(num_gpu_blocks_override=FEW_BLOCKS)


@pytest.fixture(scope="session")
def expect(llm):
    """What the offline API makes of a prompt, with the model's default parameters."""

    def expect(prompt, **params):
        defaults = llm.built.files.generation_config.sampling
        params = SamplingParams(**{"max_tokens": 16, **defaults, **params})
        return llm.generate(prompt, params, use_tqdm=False)[0]

    return expect


@pytest.fixture(scope="session")
def tool_checkpoint(tmp_path_factory):
    """The folder of a model with random weights, and a chat template that knows tools."""
    return str(write_tool_checkpoint(tmp_path_factory.mktemp("tools")))


@pytest.fixture(scope="session")
def tool_server(tool_checkpoint):
    """It, served, with Hermes's format of calls and Qwen's of reasoning."""
    options = ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--reasoning-parser=qwen3"]
    with process(tool_checkpoint, f"--served-model-name={TOOL_MODEL}", *options) as server:
        yield server


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """A server whose model reasons, calls the tool ``turn``, and answers its result."""
    with script_server(tmp_path_factory.mktemp("script")) as server:
        yield server
