"""Outputs made of another process's tokens are like those that the engine makes itself."""

from types import SimpleNamespace

import pytest

from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.outputs import CompletionOutput, FlatLogprobs, OutputKind, RequestOutput
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.server.engine_client import EngineRequest
from minimal_vllm.server.mailbox import merge
from minimal_vllm.server.processes.messages import Decoder, NewTokens, encode
from minimal_vllm.server.processes.remote_output import OutputBuilder
from minimal_vllm.text.tokenizer import Tokenizer


@pytest.mark.parametrize("stop", [None, "never"])
def test_tokens_of_merged_log_probabilities_keep_their_texts(stop):
    """With a stop string, the engine's process makes the text, and sends what it knows of it."""
    tokenizer = Tokenizer(DEMO_MODEL_DIR)
    model = SimpleNamespace(
        tokenizer=tokenizer, facts=SimpleNamespace(eos_token_ids=frozenset({0}))
    )
    request = EngineRequest("a", [1, 2], SamplingParams(logprobs=0, stop=stop), OutputKind.DELTA)
    builder, tokens = OutputBuilder(request, model), tokenizer.encode("a dark night")[:3]
    outputs = []
    for token in tokens:
        logprobs = FlatLogprobs(1, [token], [-0.5], [1], tokenizer.token_text if stop else None)
        completion = CompletionOutput(0, "", [token], logprobs=logprobs)
        sent = NewTokens.of(7, 0, RequestOutput("a", None, [1, 2], None, [completion], False))
        (received,) = Decoder().feed(encode([sent]))
        outputs.append(builder.build(received))
    merged = merge(merge(outputs[0], outputs[1]), outputs[2])
    read = [
        each.decoded_token for position in merged.outputs[0].logprobs for each in position.values()
    ]
    assert read == [tokenizer.token_text(token) for token in tokens]
