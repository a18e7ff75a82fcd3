"""What a chat template shows of the model's formats is used, unless an option says otherwise."""

import pytest
from checkpoints import TOOL_TEMPLATE

from minimal_vllm.server.config import ServerConfig
from minimal_vllm.server.formats import Formats, choose_formats
from tests.server.harness import TOOL_MODEL, process
from tests.text.model_templates import TEMPLATES

QWEN3 = (
    '{{- \'<tool_call>\\n{"name": \\"\' + name + \'\\", \\"arguments\\": \' }}'
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
)
LLAMA3 = """{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}<|python_tag|>"""


@pytest.mark.parametrize(
    ("template", "formats"),
    [
        ("", Formats()),
        (TEMPLATES["chatml"], Formats()),
        (TEMPLATES["deepseek-r1"], Formats(None, "deepseek_r1")),
        (TEMPLATES["qwen3"], Formats("hermes", None)),
        (TEMPLATES["qwen3-coder"], Formats()),
        (TOOL_TEMPLATE, Formats("hermes", "qwen3")),
        (QWEN3, Formats("hermes", "qwen3")),
        (LLAMA3, Formats("llama3_json", None)),
        ("<|start|>assistant<|channel|>analysis<|message|>", Formats("openai", "openai_gptoss")),
        (QWEN3.replace("<tool_call>", "<tool_call><function="), Formats(None, "qwen3")),
    ],
)
def test_a_template_shows_the_formats_that_are_known(template, formats):
    assert choose_formats(ServerConfig(), template) == formats


def test_options_go_before_the_template():
    config = ServerConfig(
        enable_auto_tool_choice=True, tool_call_parser="llama3_json", reasoning_parser="none"
    )
    assert choose_formats(config, TOOL_TEMPLATE) == Formats("llama3_json", None)
    assert choose_formats(ServerConfig(tool_call_parser="none"), TOOL_TEMPLATE).tool_calls is None


def test_a_server_without_options_reports_and_uses_the_formats_that_it_recognized(tool_checkpoint):
    with process(tool_checkpoint, f"--served-model-name={TOOL_MODEL}") as server:
        assert "Tool calls    hermes, as the chat template shows" in server.summary
        assert "Reasoning     qwen3, as the chat template shows" in server.summary
        tool = {"type": "function", "function": {"name": "f"}}
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        response = server.post("/v1/chat/completions", **body, tools=[tool], tool_choice="auto")
        assert response.status_code == 200
