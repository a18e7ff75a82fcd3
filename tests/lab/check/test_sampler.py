from dataclasses import replace

import pytest
import torch

from minimal_vllm.sampling.row import needs_only_numbers
from minimal_vllm.sampling.sampler import Sampled, sample
from minimal_vllm_lab.check import sampler as rules
from minimal_vllm_lab.check.sampler import check_sampler
from tests.sampling.rows import tokens_of


class Right:
    def __call__(self, logits, rows):
        return sample(logits, rows)


class AlwaysTheBest:
    def __call__(self, logits, rows):
        asked = sample(logits.clone(), rows)
        best = [
            token if row.params.greedy or token < 0 else int(line.argmax())
            for token, row, line in zip(tokens_of(asked), rows, logits, strict=True)
        ]
        return one_each(best, asked)


class LastOfEquals:
    def __call__(self, logits, rows):
        asked = sample(logits.clone(), rows)
        last = logits.shape[1] - 1 - logits.flip(-1).nan_to_num().argmax(-1)
        tokens = [
            int(last[index])
            if needs_only_numbers(row) and row.params.greedy and token >= 0
            else token
            for index, (token, row) in enumerate(zip(tokens_of(asked), rows, strict=True))
        ]
        return one_each(tokens, asked)


class KnowsNoParameters:
    def __call__(self, logits, rows):
        best = logits.nan_to_num().argmax(-1).tolist()
        return Sampled.one_each(best)


class DependsOnOtherRows:
    """Uses one stream of random numbers for the whole batch."""

    def __call__(self, logits, rows):
        asked = sample(logits.clone(), rows)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(logits.nan_to_num().softmax(-1), 1, generator=generator)
        tokens = [
            int(drawn[index]) if _is_plain(row.params) and token >= 0 else token
            for index, (token, row) in enumerate(zip(tokens_of(asked), rows, strict=True))
        ]
        return one_each(tokens, asked)


class IgnoresTheTemperature:
    def __call__(self, logits, rows):
        return sample(logits, [_with(row, temperature=1.0) for row in rows])


class IgnoresTopK:
    def __call__(self, logits, rows):
        return sample(logits, [_with(row, top_k=0) for row in rows])


class IgnoresThePosition:
    def __call__(self, logits, rows):
        return sample(logits, [_Changed(row, next_output_index=0) for row in rows])


class HidesBrokenRows:
    def __call__(self, logits, rows):
        return sample(logits.nan_to_num(), rows)


class TwoAtOnce:
    def __call__(self, logits, rows):
        asked = sample(logits, rows)
        return replace(asked, tokens=[each * 2 for each in asked.tokens])


class GivesUp:
    """Takes a row whose logits are all equal for one that nothing can be sampled from."""

    def __call__(self, logits, rows):
        flat = (logits == logits[:, :1]).all(dim=-1).tolist()
        asked = sample(logits, rows)
        return replace(
            asked,
            tokens=[[] if flat[i] else tokens for i, tokens in enumerate(asked.tokens)],
        )


def one_each(tokens, asked):
    """``asked`` with other tokens."""
    return replace(asked, tokens=Sampled.one_each(tokens).tokens)


class _Changed:
    def __init__(self, row, **changes):
        self._row, self._changes = row, changes

    def __getattr__(self, name):
        return self._changes[name] if name in self._changes else getattr(self._row, name)


def _with(row, **params):
    return row if row.params.greedy else _Changed(row, params=replace(row.params, **params))


def _is_plain(params):
    filters = (params.top_k > 0, params.top_p < 1, params.min_p > 0, params.logprobs is not None)
    return not (params.greedy or any(filters) or params.temperature != 1)


class IgnoresBad:
    def __call__(self, logits, rows):
        return sample(logits, [_Changed(r, bad_word_ids=()) for r in rows])


class IgnoresGrammar:
    def __call__(self, logits, rows):
        return sample(logits, [_Changed(r, grammar=None) for r in rows])


class LogprobsAfterTemperature:
    def __call__(self, logits, rows):
        a = sample(logits.clone(), rows)
        b = sample(logits / 2, rows)
        return replace(a, logprobs=b.logprobs)


class LogprobsShifted:
    def __call__(self, logits, rows):
        a = sample(logits, rows)
        return replace(a, logprobs=list(a.logprobs)[::-1])


class ReverseRows:
    def __call__(self, logits, rows):
        a = sample(logits, rows)
        return replace(a, tokens=list(a.tokens)[::-1], logprobs=list(a.logprobs)[::-1])


class Tensors:
    def __call__(self, logits, rows):
        a = sample(logits, rows)
        return replace(a, tokens=[[torch.tensor(t) for t in x] for x in a.tokens])


class ReturnsList:
    def __call__(self, logits, rows):
        return sample(logits, rows).tokens


class NanKillsAll:
    def __call__(self, logits, rows):
        a = sample(logits.clone(), rows)
        return (
            replace(a, tokens=[[] for _ in a.tokens], logprobs=a.logprobs)
            if logits.isnan().any()
            else a
        )


class NanGivesZero:
    def __call__(self, logits, rows):
        a = sample(logits, rows)
        return replace(a, tokens=[x or [0] for x in a.tokens])


class TemperatureTwice:
    def __call__(self, logits, rows):
        t = torch.tensor([[r.params.temperature or 1.0] for r in rows])
        return sample(logits / t, rows)


class TopKOneMore:
    def __call__(self, logits, rows):
        return sample(
            logits, [_with(r, top_k=r.params.top_k + 1 if r.params.top_k > 0 else 0) for r in rows]
        )


def ignores(**defaults):
    """Return a sampler that has these values for all rows."""

    class Ignores:
        def __call__(self, logits, rows):
            changed = [_Changed(row, params=replace(row.params, **defaults)) for row in rows]
            return sample(logits, changed)

    Ignores.__name__ = f"Ignores {', '.join(defaults)}"
    return Ignores


MUTANTS = {
    AlwaysTheBest: rules.FREQUENCIES,
    LastOfEquals: rules.GREEDY,
    KnowsNoParameters: rules.OPTIONS_APPLIED,
    DependsOnOtherRows: rules.ROW_INDEPENDENT,
    IgnoresTheTemperature: rules.FREQUENCIES,
    IgnoresTopK: rules.POSSIBLE,
    IgnoresThePosition: rules.NEW_DRAW,
    HidesBrokenRows: rules.NAN_ROW,
    TwoAtOnce: rules.ONE_EACH,
    GivesUp: rules.ONE_EACH,
    IgnoresBad: rules.OPTIONS_APPLIED,
    IgnoresGrammar: rules.OPTIONS_APPLIED,
    LogprobsAfterTemperature: rules.OPTIONS_APPLIED,
    LogprobsShifted: rules.OPTIONS_APPLIED,
    ReverseRows: rules.GREEDY,
    Tensors: rules.ONE_EACH,
    ReturnsList: rules.ONE_EACH,
    NanKillsAll: rules.NAN_ROW,
    NanGivesZero: rules.NAN_ROW,
    TemperatureTwice: rules.FREQUENCIES,
    TopKOneMore: rules.POSSIBLE,
    ignores(top_p=1.0): rules.POSSIBLE,
    ignores(min_p=0.0): rules.POSSIBLE,
    ignores(repetition_penalty=1.0): rules.OPTIONS_APPLIED,
    ignores(presence_penalty=0.0): rules.OPTIONS_APPLIED,
    ignores(frequency_penalty=0.0): rules.OPTIONS_APPLIED,
    ignores(logit_bias=None): rules.OPTIONS_APPLIED,
    ignores(allowed_token_ids=None): rules.OPTIONS_APPLIED,
    ignores(min_tokens=0): rules.OPTIONS_APPLIED,
    ignores(logprobs=None): rules.OPTIONS_APPLIED,
}


def test_the_engine_s_sampler_passes():
    assert check_sampler(Right) is None


@pytest.mark.breaks("check sampler")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found_and_named(mutant):
    lesson = check_sampler(mutant)
    assert lesson is not None
    assert lesson.rule is MUTANTS[mutant], "\n".join(lesson.lines())
