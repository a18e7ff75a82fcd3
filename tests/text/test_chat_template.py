import json

import pytest
from transformers import AutoTokenizer

from minimal_vllm.text.chat_template import ChatTemplate, load_chat_template
from minimal_vllm.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import llama3, qwen

LLAMA_3 = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
<|header|>system<|/header|>

Today is {{ strftime_now('%d %b %Y') if strftime_now is defined else 'unknown' }}. {{ system }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson(indent=4)) }}
    {%- endfor %}
{%- endif %}
<|eot_id|>
{%- for message in messages %}
    {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' + message['content'] | trim }}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|/header|>\\n\\n' }}
{%- endif %}
"""

QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is defined and loop.index0 > ns.last %}
        {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>' + call.function.name + (call.function.arguments | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

SMOLLM3 = """
{%- macro header(role) %}<|im_start|>{{ role }}
{% endmacro -%}
{% for message in messages %}
  {% if message.role == 'tool' %}
    {% continue %}
  {% endif %}
  {{ header(message.role) }}
  {% if message.role == 'assistant' %}
    {% generation %}
      {% set said = message.content %}
{{ said }}{{ '<|im_end|>' }}
    {% endgeneration %}
    {{ said is defined }}
  {% else %}
{{ message.content }}<|im_end|>
  {% endif %}
  {% if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ header('assistant') }}{% endif %}
"""

MISTRAL = """
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {"llama3": LLAMA_3, "qwen": QWEN, "smollm3": SMOLLM3, "mistral": MISTRAL}

CHATS = {
    "one": [{"role": "user", "content": "  Is <b>1 < 2</b> & 'so' on? ✓ "}],
    "talk": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello. ", "tool_calls": None},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Farewell ", "reasoning": "They go."},
    ],
}

SYSTEM = [{"role": "system", "content": " Be brief."}, *CHATS["one"]]

CALLS = [
    *CHATS["one"],
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {"é": [1, None, "<a>"]}}}],
    },
    {"role": "tool", "content": "42"},
]

TOOLS = [{"type": "function", "function": {"name": "f", "description": "naïve <é>"}}]


@pytest.fixture
def folder(tmp_path):
    return llama3(tmp_path / "model")


def both(folder, template, messages, **arguments):
    """Our rendering and that of transformers."""
    ours = load_chat_template(Tokenizer(folder), template).render(messages, **arguments)
    theirs = AutoTokenizer.from_pretrained(folder)
    arguments = {"add_generation_prompt": True, **arguments}
    return ours, theirs.apply_chat_template(
        messages, chat_template=template, tokenize=False, **arguments
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(folder, template, chat, add_generation_prompt):
    ours, theirs = both(folder, template, chat, add_generation_prompt=add_generation_prompt)
    assert ours == theirs


@pytest.mark.parametrize("style", ["llama3", "qwen", "smollm3"])
def test_renders_tools_and_other_variables_as_transformers_does(folder, style):
    for messages in (SYSTEM, CALLS if style != "llama3" else SYSTEM):
        ours, theirs = both(folder, TEMPLATES[style], messages, tools=TOOLS, enable_thinking=False)
        assert ours == theirs


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_continues_the_final_message_as_transformers_does(folder, template):
    arguments = {"add_generation_prompt": False, "continue_final_message": True}
    ours, theirs = both(folder, template, CHATS["talk"], **arguments)
    assert ours == theirs
    assert ours.endswith("Farewell" if "trim" in template else "Farewell ")


def test_the_texts_of_a_content_in_parts_are_lines():
    template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}] * 2
    assert template.render(messages) == "[a\nb][a\nb]"
    open_end = {"add_generation_prompt": False, "continue_final_message": True}
    assert template.render(messages, **open_end) == "[a\nb][a\nb"
    assert parts[1]["text"] == "b"


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {}}, "image_url"),
        (5, "int"),
        ({"type": "text"}, "text"),
    ],
)
def test_what_is_no_text_is_refused_and_not_written_into_the_prompt(part, kind):
    with pytest.raises(ValueError, match=f"message 1 has content of type '{kind}'; only text "):
        ChatTemplate("{{ messages }}").render([*CHATS["one"], {"role": "user", "content": [part]}])


@pytest.mark.parametrize("wrap", [lambda f: {"function": f}, lambda f: f])
def test_arguments_of_calls_may_be_json_as_openai_has_them(wrap):
    def render(arguments):
        call = wrap({"name": "f", "arguments": arguments})
        message = {"role": "assistant", "tool_calls": [call]}
        return ChatTemplate("{{ messages[0].tool_calls[0] | tojson }}").render([message])

    assert render('{"é": [1, null]}') == render({"é": [1, None]})
    assert render("") == render({})


def test_a_template_in_the_configuration_is_found(folder, tmp_path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for entry in (
        QWEN,
        [{"name": "tool_use", "template": "T"}, {"name": "default", "template": QWEN}],
    ):
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**config, "chat_template": entry})
        )
        template = load_chat_template(Tokenizer(folder))
        theirs = AutoTokenizer.from_pretrained(folder)
        for tools in (None, TOOLS):
            assert template.render(CHATS["one"], tools=tools) == theirs.apply_chat_template(
                CHATS["one"], tools=tools, tokenize=False, add_generation_prompt=True
            )


def test_a_template_file_goes_before_the_configuration(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "old"}))
    (folder / "chat_template.jinja").write_text("new")
    assert load_chat_template(Tokenizer(folder)).render(CHATS["one"]) == "new"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    template = load_chat_template(Tokenizer(folder))
    assert template.render(CHATS["one"]) == "new"
    assert template.render(CHATS["one"], tools=TOOLS) == "tools"


def test_a_template_in_its_older_json_file_is_found(folder):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "in json"}))
    assert load_chat_template(Tokenizer(folder)).render(CHATS["one"]) == "in json"


def test_the_users_template_goes_first_and_may_be_a_file(folder, tmp_path):
    (folder / "chat_template.jinja").write_text("the model's")
    (tmp_path / "mine.jinja").write_text("{{ eos_token }}")
    for given in ("{{ eos_token }}", str(tmp_path / "mine.jinja")):
        template = load_chat_template(Tokenizer(folder), given)
        assert template.render(CHATS["one"]) == "<|eot_id|>"
    with pytest.raises(ValueError, match=r"'no\.jinja' is neither a chat template nor a file"):
        load_chat_template(Tokenizer(folder), "no.jinja")


def test_a_model_without_a_template_has_none(tmp_path):
    folder = qwen(tmp_path)
    assert load_chat_template(Tokenizer(folder)) is None


def test_templates_without_a_default_are_refused_when_rendered():
    with pytest.raises(ValueError, match=r"\(a, b\) is named 'default'"):
        ChatTemplate({"b": "", "a": ""}).render(CHATS["one"])


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "at least one message"),
        ("Hi", "a list of"),
        (["Hi"], "message 0 should be an object with a role, not 'Hi'"),
        ([{"content": "Hi"}], "message 0 should be an object with a role"),
        ([{"role": "user", "content": object()}], "accepts only JSON values"),
        ([{"role": "assistant", "content": "Hi"}], "Roles must alternate"),
        ([{"role": "user"}], "the chat template rejects these messages"),
        ([{"role": "user", "content": 1}], "the chat template rejects these messages"),
        ([{"role": "user", "content": "Hi", "tool_calls": ["f"]}], "a tool call that is 'f', but"),
    ],
)
def test_malformed_messages_are_refused_with_a_sentence(messages, match):
    template = ChatTemplate(MISTRAL, {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(ValueError, match=match):
        template.render(messages)


def test_what_cannot_be_continued_is_refused():
    def render(template, content):
        message = {"role": "user", "content": content}
        return ChatTemplate(template).render(
            [message], continue_final_message=True, add_generation_prompt=False
        )

    for content in (None, 1):
        with pytest.raises(ValueError, match="a final message with text to continue"):
            render("{{ messages[0].content }}", content)
    with pytest.raises(ValueError, match="does not work with this chat template"):
        render("{{ messages[0].content[:3] }}", "a long message")
    with pytest.raises(ValueError, match="set add_generation_prompt=False"):
        ChatTemplate("").render(CHATS["one"], continue_final_message=True)


def test_a_template_with_wrong_syntax_is_refused_when_loaded():
    with pytest.raises(ValueError, match="not valid Jinja"):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(template):
    try:
        text = ChatTemplate(template).render(CHATS["one"])
    except ValueError:
        text = ""
    assert text == ""
