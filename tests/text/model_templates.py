"""Chat templates that want messages in different forms, after those of well-known models."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's and many others': it concatenates the content."""

DEEPSEEK_R1 = """
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '<U>' + message['content'] }}{%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is none %}
        {%- for tool in message['tool_calls'] %}
            {{- '<call>' + tool['type'] + '<sep>' + tool['function']['name'] + '\n```json\n' }}
            {{- tool['function']['arguments'] + '\n```' }}
        {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}
        {{- '<A>' + message['content'].split('</think>')[-1] }}
    {%- endif %}
    {%- if message['role'] == 'tool' %}{{- '<T>' + message['content'] }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<A>' }}{%- endif %}
"""
"""It tells calls by content that is none, and concatenates their arguments as strings."""

MISTRAL = """
{%- for message in messages %}
    {%- if message['role'] in ('user', 'system') %}
        {{- '[INST]' }}
        {%- if message['content'] is string %}
            {{- message['content'] }}
        {%- else %}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}{{- '<p>' + block['text'] }}
                {%- else %}{{- raise_exception('Only text is supported') }}{%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '[/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {%- if message['tool_calls'] is defined and message['tool_calls'] is not none %}
            {%- for tool in message['tool_calls'] %}
                {%- set arguments = tool['function']['arguments'] %}
                {%- if arguments is not string %}{% set arguments = arguments | tojson %}{% endif %}
                {{- '[CALL]' + tool['function']['name'] + arguments }}
            {%- endfor %}
        {%- else %}
            {%- if message['content'] is string %}{{- message['content'] }}
            {%- else %}
                {%- for block in message['content'] %}{{- block['text'] }}{%- endfor %}
            {%- endif %}
        {%- endif %}
    {%- else %}{{- '[RESULT]' + message['content']|string }}{%- endif %}
{%- endfor %}
"""
"""Mistral Small 3.2's: it iterates over the content's parts."""

QWEN3 = """
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content }}
    {%- if message.tool_calls %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
"""
"""It takes content that isn't a string for none at all."""

QWEN3_CODER = """
{%- macro text_of(content) %}
    {%- if content is string %}{{- content }}
    {%- else %}{%- for item in content %}{{- '<p>' + item.text }}{%- endfor %}{%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + text_of(message.content) }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '<function=' + tool_call.function.name + '>' }}
        {%- for name, value in tool_call.function.arguments | items %}
            {{- '<parameter=' + name + '>' + (value | string) + '</parameter>' }}
        {%- endfor %}
    {%- endfor %}
{%- endfor %}
"""
"""It iterates over the arguments, which must be an object."""

TEMPLATES = {
    "chatml": CHATML,
    "deepseek-r1": DEEPSEEK_R1,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "qwen3-coder": QWEN3_CODER,
}
