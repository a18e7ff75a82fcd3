"""What users get of a step that gives a request several tokens at once."""

from array import array

import pytest

from minimal_vllm.demo import DEMO_MODEL_DIR
from minimal_vllm.engine.output_processor import OutputProcessor, RequestGroup
from minimal_vllm.outputs import FlatLogprobs, OutputKind
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import FinishReason, Request, Status
from minimal_vllm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(DEMO_MODEL_DIR)


def certain(tokens):
    """Log-probabilities of tokens, each with a probability of its own."""
    return FlatLogprobs(1, tokens, [-0.5] * len(tokens), [1] * len(tokens))


class Writing:
    """One request that is given the tokens of a text, several in a step."""

    def __init__(self, tokenizer, kind=OutputKind.CUMULATIVE, **params):
        self.outputs = OutputProcessor(tokenizer)
        params = SamplingParams(max_tokens=50, logprobs=0, **params)
        self.request = Request("a", array("i", tokenizer.encode("It was")), 0, params, 1)
        self.request.num_prompt_tokens = self.request.num_tokens
        group = RequestGroup("a", None, self.request.token_ids.tolist(), kind)
        self.outputs.add(group, [self.request])

    def take(self, tokens, logprobs=None):
        """What ``Engine`` does with the tokens of a step, but for the scheduler's part."""
        self.request.token_ids.extend(tokens)
        for request, stop, num_tokens in self.outputs.find_stop_strings([self.request]):
            del request.token_ids[num_tokens:]
            request.status, request.finish_reason = Status.FINISHED, FinishReason.STOP
            request.stop_reason = stop
        if logprobs is None:
            logprobs = certain(tokens)
        self.outputs.add_logprobs([self.request], [logprobs])
        return [output.outputs[0] for output in self.outputs.make_outputs([self.request])]


def test_several_tokens_of_a_step_come_as_one_output(tokenizer):
    tokens = tokenizer.encode(" a dark night", add_special_tokens=False)
    assert len(tokens) > 2
    (delta,) = Writing(tokenizer, OutputKind.DELTA).take(tokens)
    assert (delta.token_ids, delta.text) == (tokens, " a dark night")
    assert [list(each) for each in delta.logprobs] == [[token] for token in tokens]
    assert delta.cumulative_logprob == pytest.approx(-0.5 * len(tokens))


@pytest.mark.parametrize("kind", OutputKind)
@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_in_the_first_of_several_tokens_drops_the_others(tokenizer, kind, included):
    first, *others = tokenizer.encode(" a dark night", add_special_tokens=False)
    stop = tokenizer.token_text(first)
    writing = Writing(tokenizer, kind, stop=[stop], include_stop_str_in_output=included)
    (last,) = writing.take([first, *others])
    assert (last.token_ids, last.finish_reason, last.stop_reason) == ([first], "stop", stop)
    assert last.text == (stop if included else "")
    assert [list(each) for each in last.logprobs] == [[first]]
    assert last.cumulative_logprob == -0.5


def test_a_request_that_ended_at_an_earlier_token_keeps_no_later_log_probabilities(tokenizer):
    first, second, *_ = tokenizer.encode(" a dark night", add_special_tokens=False)
    writing = Writing(tokenizer)
    logprobs = certain([first, second])
    (output,) = writing.take([first], logprobs)  # the scheduler dropped the second token
    assert [list(each) for each in output.logprobs] == [[first]]
