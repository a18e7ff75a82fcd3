"""Each mistake in a mixture of experts is found, and for its real reason."""

from types import SimpleNamespace

import pytest
import torch

from minimal_vllm.model.experts import choose_experts, mix_experts
from minimal_vllm_lab.learn import check_experts as rules


def chooses_the_lowest(logits, per_token, normalized):
    return choose_experts(-logits, per_token, normalized)


def chooses_in_order_of_index(logits, per_token, normalized):
    experts, weights = choose_experts(logits, per_token, normalized)
    return experts.sort(dim=-1).values, weights


def always_normalizes(logits, per_token, normalized):
    return choose_experts(logits, per_token, True)


def never_normalizes(logits, per_token, normalized):
    return choose_experts(logits, per_token, False)


def stays_in_16_bits(logits, per_token, normalized):
    experts, weights = choose_experts(logits, per_token, normalized)
    return experts, weights.to(logits.dtype)


def calls_all_experts(x, experts, weights, expert):
    for index in set(range(6)) - set(experts.flatten().tolist()):
        expert(index, x)
    return mix_experts(x, experts, weights, expert)


def loops_over_tokens(x, experts, weights, expert):
    rows = zip(x.split(1), experts.split(1), weights.split(1), strict=True)
    return torch.cat([mix_experts(*row, expert) for row in rows])


def forgets_weights(x, experts, weights, expert):
    return mix_experts(x, experts, torch.ones_like(weights), expert)


def mixes_up_the_order(x, experts, weights, expert):
    return mix_experts(x, experts, weights, expert).flip(0)


def averages(x, experts, weights, expert):
    return mix_experts(x, experts, weights, expert) / experts.shape[1]


def lesson(choose=choose_experts, mix=mix_experts):
    return rules.check_experts(SimpleNamespace(choose_experts=choose, mix_experts=mix))


CHOICES = {
    chooses_the_lowest: rules.CHOSEN,
    chooses_in_order_of_index: rules.CHOSEN,
    always_normalizes: rules.WEIGHTS,
    never_normalizes: rules.WEIGHTS,
    stays_in_16_bits: rules.WEIGHTS,
}
MIXTURES = {
    calls_all_experts: rules.ONCE,
    loops_over_tokens: rules.ONCE,
    forgets_weights: rules.SUM,
    mixes_up_the_order: rules.SUM,
    averages: rules.SUM,
}


def test_the_same_without_a_mistake_passes():
    assert lesson() is None


@pytest.mark.parametrize("mutant", CHOICES, ids=lambda mutant: mutant.__name__)
def test_a_wrong_choice_is_found(mutant):
    assert lesson(choose=mutant).rule == CHOICES[mutant]


@pytest.mark.parametrize("mutant", MIXTURES, ids=lambda mutant: mutant.__name__)
def test_a_wrong_mixture_is_found(mutant):
    assert lesson(mix=mutant).rule == MIXTURES[mutant]
