from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from minimal_vllm.attention.paged import PagedStep
from minimal_vllm.attention.reference import (
    ReferenceAttention,
    ReferenceStep,
    attend,
    gather_pages,
)
from minimal_vllm_lab.check import attention as rules
from minimal_vllm_lab.check.attention import check_attention


def attention_with(function, gather=gather_pages):
    """Return a backend that applies ``function`` to the keys and values that ``gather`` returns."""

    class MutantStep(PagedStep):
        def __call__(self, q, k, v, cache, options):
            out = torch.empty_like(q)
            starts = self.query_starts.tolist()
            for row, seq_len in enumerate(self.seq_lens.tolist()):
                own = slice(starts[row], starts[row + 1])
                keys, values = (gather(layer, self.block_tables[row], seq_len) for layer in cache)
                out[own] = function(q[own], keys, values, options.scale, options.window)
            return out

    return attention_of(MutantStep)


def attention_of(step):
    class Mutant:
        def __init__(self, device):
            self.device = device

        def plan(self, batch):
            return step.from_batch(batch, self.device)

    return Mutant


def sees_the_future(q, keys, values, scale, window):
    return torch.cat([attend(row[None], keys, values, scale, None) for row in q])


def pairs_heads_wrongly(q, keys, values, scale, window):
    group = q.shape[1] // keys.shape[1]
    return attend(q, keys.repeat(1, group, 1), values.repeat(1, group, 1), scale, window)


def forgets_the_scale(q, keys, values, scale, window):
    return attend(q, keys, values, 1.0, window)


def ignores_the_window(q, keys, values, scale, window):
    return attend(q, keys, values, scale, None)


def sees_one_too_many(q, keys, values, scale, window):
    return attend(q, keys, values, scale, window and window + 1)


def begins_at_zero(q, keys, values, scale, window):
    n = len(q)
    return attend(q, keys[:n], values[:n], scale, window)


def spoils_the_queries(q, keys, values, scale, window):
    return attend(q.mul_(scale), keys, values, 1.0, window)


def reads_one_block_too_many(layer, block_table, seq_len):
    block_size = layer.shape[2]
    pages = layer[block_table[: seq_len // block_size + 1].long()]
    return pages.transpose(1, 2).reshape(-1, layer.shape[1], layer.shape[3])


def reads_blocks_in_the_order_of_their_ids(layer, block_table, seq_len):
    used = block_table[: -(-seq_len // layer.shape[2])]
    return gather_pages(layer, used.sort().values, seq_len)


FUNCTIONS = {
    sees_the_future: "causal mask is missing",
    pairs_heads_wrongly: "kv head h % K",
    forgets_the_scale: "not multiplied by scale",
    ignores_the_window: "the window is ignored",
    sees_one_too_many: "the window is one token too long",
    begins_at_zero: "the positions of the new tokens are counted from 0",
}


def test_the_engine_s_attention_passes():
    assert check_attention(ReferenceAttention, examples=60) is None


@pytest.mark.breaks("paged-attention", "check attention_backend")
@pytest.mark.parametrize("mistake", FUNCTIONS)
def test_a_well_known_mistake_is_named(mistake):
    lesson = check_attention(attention_with(mistake), plain=True)
    assert lesson.rule is rules.SAME
    assert FUNCTIONS[mistake] in lesson.found, lesson.found


@pytest.mark.breaks("paged-attention", "check attention_backend")
@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        (attention_with(attend, reads_one_block_too_many), rules.OWN_SLOTS_ONLY),
        (attention_with(spoils_the_queries), rules.UNTOUCHED),
    ],
)
def test_other_mistakes_are_found(mutant, rule):
    assert check_attention(mutant, plain=True).rule is rule


@pytest.mark.parametrize("option", ["softcap", "sinks"])
def test_an_option_that_is_ignored_is_named(option):
    class Step(ReferenceStep):
        def __call__(self, q, k, v, cache, options):
            return super().__call__(q, k, v, cache, replace(options, **{option: None}))

    lesson = check_attention(attention_of(Step))
    assert f"{option} {'are' if option == 'sinks' else 'is'} ignored" in lesson.found


def test_a_wrong_order_of_blocks_is_found_with_and_without_unwritten_slots():
    backend = attention_with(attend, reads_blocks_in_the_order_of_their_ids)
    lesson = check_attention(backend, plain=True)
    assert lesson.rule in (rules.SAME, rules.OWN_SLOTS_ONLY)


def test_a_result_with_the_wrong_shape_is_rejected():
    class Halved(ReferenceStep):
        def __call__(self, *arguments):
            return super().__call__(*arguments)[:, :1]

    class Nothing(ReferenceStep):
        def __call__(self, *arguments):
            return None

    class InFloat32(ReferenceStep):
        def __call__(self, *arguments):
            return super().__call__(*arguments).float()

    lessons = [check_attention(attention_of(step)) for step in (Halved, Nothing, InFloat32)]
    assert [lesson.rule for lesson in lessons] == [rules.SHAPE] * 3


def softmax_with(hidden=-torch.inf, weigh=torch.softmax):
    """Return attention with another number for hidden scores, or another softmax."""

    def function(q, keys, values, scale, window):
        group = q.shape[1] // keys.shape[1]
        keys, values = (each.repeat_interleave(group, 1) for each in (keys, values))
        distance = torch.arange(len(keys) - len(q), len(keys))[:, None] - torch.arange(len(keys))
        visible = (distance >= 0) & (distance < (window or len(keys) + 1))
        scores = torch.einsum("nhd,mhd->hnm", q, keys) * scale
        return torch.einsum("hnm,mhd->nhd", weigh(scores.masked_fill(~visible, hidden), -1), values)

    return attention_with(function)


def without_peak(scores, dim):
    return scores.exp() / scores.exp().sum(dim, keepdim=True)


def without_division(scores, dim):
    return (scores - scores.amax(dim, keepdim=True)).exp()


def over_queries(scores, dim):
    return scores.softmax(-2).nan_to_num()


class KeysForValues(ReferenceStep):
    def __call__(self, q, k, v, cache, options):
        return super().__call__(q, k, v, type(cache)(cache.key, cache.key), options)


class NewTokensOnly(ReferenceStep):
    def __call__(self, q, k, v, cache, options):
        starts = self.query_starts.tolist()
        own = [slice(*each) for each in pairwise(starts)]
        return torch.cat([attend(q[s], k[s], v[s], options.scale, options.window) for s in own])


class WritesToTheCache(ReferenceStep):
    def __call__(self, q, k, v, cache, options):
        out = super().__call__(q, k, v, cache, options)
        cache.key.zero_()
        return out


class RoundsToBfloat16(ReferenceStep):
    def __call__(self, *arguments):
        return super().__call__(*arguments).bfloat16().float()


class RemembersItsFirstBatch:
    def __init__(self, device):
        self.device, self.step = device, None

    def plan(self, batch):
        self.step = self.step or ReferenceStep.from_batch(batch, self.device)
        return self.step


def reads_padding(layer, block_table, seq_len):
    return layer[block_table.long()].transpose(1, 2).flatten(0, 1)


def reads_full_blocks_only(layer, block_table, seq_len):
    return layer[block_table[: seq_len // layer.shape[2]].long()].transpose(1, 2).flatten(0, 1)


def forgets_to_move_the_heads(layer, block_table, seq_len):
    pages = layer[block_table[: -(-seq_len // layer.shape[2])].long()]
    return pages.reshape(-1, layer.shape[1], layer.shape[3])[:seq_len]


@pytest.mark.breaks("paged-attention", "check attention_backend")
@pytest.mark.parametrize(
    ("mutant", "rule", "named"),
    [
        (softmax_with(hidden=0.0), rules.SAME, "hidden scores are 0"),
        (softmax_with(hidden=-10.0), rules.SAME, ""),
        (softmax_with(weigh=without_peak), rules.OVERFLOWS, "only if scores are large"),
        (softmax_with(weigh=without_division), rules.SAME, "not divided by their sum"),
        (softmax_with(weigh=over_queries), rules.SAME, ""),
        (attention_of(KeysForValues), rules.SAME, "the keys are averaged"),
        (attention_of(NewTokensOnly), rules.SAME, "only the step's new tokens"),
        (attention_of(WritesToTheCache), rules.UNTOUCHED, ""),
        (attention_of(RoundsToBfloat16), rules.SAME, ""),
        (RemembersItsFirstBatch, rules.EACH_BATCH, ""),
        (attention_with(attend, reads_padding), rules.OWN_SLOTS_ONLY, ""),
        (attention_with(attend, reads_full_blocks_only), rules.SAME, "partly filled block"),
        (attention_with(attend, forgets_to_move_the_heads), rules.OWN_SLOTS_ONLY, ""),
    ],
)
def test_a_mistake_is_found_for_its_reason(mutant, rule, named):
    lesson = check_attention(mutant, plain=True)
    assert lesson.rule is rule, "\n".join(lesson.lines())
    assert named in lesson.found
