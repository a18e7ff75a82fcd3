"""A checkpoint of a model that follows a script, so that a client's whole loop can be tested.

Its layers add nothing: the next token follows from the last alone. The chat template ends the
prompt with one token when it is the user's turn that is answered, and with another when the result
of a tool is. After the first the model reasons and calls a tool, after the second it answers.
"""

from contextlib import contextmanager
from itertools import pairwise

import torch
from checkpoints import (
    BYTES,
    FAMILIES,
    MERGES,
    SPECIAL_TOKENS,
    random_weights,
    write_json,
    write_tokenizer,
    write_weights,
)

from tests.server.harness import process

CALL, ANSWER = "<|call|>", "<|answer|>"
END = "<|im_end|>"
NUM_LAYERS = 1
HIDDEN_SIZE = 64
CONFIDENCE = 100.0

TEMPLATE = f"""
{{%- for tool in tools or [] %}}{{{{- tool | tojson }}}}{{%- endfor %}}
{{%- for message in messages %}}
    {{{{- message.role + ': ' + (message.content or '') + '\n' }}}}
{{%- endfor %}}
{{%- if tools and messages[-1].role != 'tool' %}}{{{{- '{CALL}' }}}}
{{%- else %}}{{{{- '{ANSWER}' }}}}{{%- endif %}}
"""


HARMONY_TEMPLATE = TEMPLATE + "{#- reasoning: <|channel|>analysis<|message|> #}"
HARMONY_CALL = (
    "<|end|><|start|>assistant<|channel|>commentary to=functions.turn <|constrain|>json<|message|>"
)


def write_scripted_checkpoint(
    folder, reasoning, call, answer, max_model_len=8192, *, harmony=False
):
    """Write the checkpoint, and return its folder.

    Args:
        reasoning: the model's thoughts before it calls the tool.
        call: the call, as JSON with ``name`` and ``arguments``.
        answer: the model's answer to the tool's result, and to anything if it has no tools.
        harmony: whether it writes in gpt-oss' format; then ``call`` is the arguments alone.
    """
    before_result = ["<think>", reasoning, "</think>", "<tool_call>", call, "</tool_call>"]
    after_result = [answer]
    if harmony:
        before_result = ["<|channel|>analysis<|message|>", reasoning, HARMONY_CALL, call]
        after_result = ["<|channel|>final<|message|>", answer]
    tags = [CALL, ANSWER, *before_result, *after_result]
    first = len(BYTES) + len(SPECIAL_TOKENS) + len(MERGES)
    token_ids = {tag: first + index for index, tag in enumerate(tags)}
    token_ids[END] = len(BYTES) + SPECIAL_TOKENS.index(END)

    folder.mkdir(parents=True, exist_ok=True)
    config = FAMILIES["llama"] | {
        "vocab_size": first + len(tags),
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "max_position_embeddings": max_model_len,
        "eos_token_id": token_ids[END],
    }
    weights = random_weights(config)
    for layer in range(NUM_LAYERS):
        weights[f"model.layers.{layer}.self_attn.o_proj.weight"].zero_()
        weights[f"model.layers.{layer}.mlp.down_proj.weight"].zero_()
    weights["model.norm.weight"].fill_(1)
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    torch.nn.init.normal_(embedding, generator=torch.Generator().manual_seed(0))
    head.zero_()
    for script in ([CALL, *before_result, END], [ANSWER, *after_result, END]):
        for token, next_token in pairwise(script):
            direction = embedding[token_ids[token]]
            head[token_ids[next_token]] += CONFIDENCE * direction / direction.norm()

    write_json(folder / "config.json", config)
    write_weights(folder, weights)
    write_tokenizer(folder, HARMONY_TEMPLATE if harmony else TEMPLATE, tags)
    return folder


@contextmanager
def script_server(folder):
    """Serve a model that reasons, calls the tool ``turn``, and answers its result."""
    call = '{"name": "turn", "arguments": {"to": "left"}}'
    checkpoint = write_scripted_checkpoint(folder, "Left is best.", call, "I went left.")
    options = ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--reasoning-parser=qwen3"]
    with process(str(checkpoint), "--served-model-name=script", *options) as server:
        yield server
