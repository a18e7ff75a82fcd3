"""Records, metrics and summaries tell how much was guessed, and how much of it was right."""

import pytest

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cli.summary import RunSummary
from minimal_vllm.metrics.reader import Vector
from tests.speculation.guessers import Knowing


@pytest.fixture
def run(guesses_cost_nothing):
    """An engine that has guessed, its records, and its summary."""
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    options = {"num_gpu_blocks_override": 64, "skip_tokenizer_init": True}
    prompts = [{"prompt_token_ids": [50, 60, 70 + each]} for each in range(2)]
    outputs = LLM(**options).generate(prompts, params)
    Knowing.outputs = {
        tuple(output.prompt_token_ids): [output.outputs[0].token_ids] for output in outputs
    }
    records, summary = [], RunSummary()
    llm = LLM(
        **options,
        disable_log_stats=False,
        observers=[records.append, summary],
        speculative_config={
            "method": "tests.speculation.guessers:Knowing",
            "num_speculative_tokens": 4,
        },
    )
    llm.generate(prompts, params)
    return llm, [entry for record in records for entry in record.scheduled], summary


def test_guesses_are_counted_as_in_vllm(run):
    llm, entries, summary = run
    guessed = [entry for entry in entries if entry.num_guesses]
    accepted = [len(entry.sampled_tokens) - 1 for entry in guessed]
    found = {
        metric.name.removeprefix("vllm:spec_decode_num_"): metric for metric in llm.get_metrics()
    }
    assert found["drafts"].value == len(guessed) > 4
    assert found["draft_tokens"].value == sum(entry.num_guesses for entry in guessed)
    assert found["accepted_tokens"].value == sum(accepted) > 4
    per_position = found["accepted_tokens_per_pos"]
    assert isinstance(per_position, Vector)
    assert per_position.labels == {"model_name": per_position.labels["model_name"], "engine": "0"}
    assert per_position.values == [
        sum(count > position for count in accepted) for position in range(max(accepted))
    ]
    share = 100 * sum(accepted) / sum(entry.num_guesses for entry in guessed)
    assert f"tokens guessed, {share:.0f} % of them right" in str(summary)


def test_a_guess_is_either_right_or_rejected_unless_its_request_ends(run):
    _, entries, _ = run
    last = {entry.request_id: entry for entry in entries}
    for entry in entries:
        if entry is not last[entry.request_id] and entry.sampled_tokens:
            assert entry.num_guesses == entry.num_rejected + len(entry.sampled_tokens) - 1
