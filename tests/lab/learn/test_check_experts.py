"""Each mistake in a mixture of experts is found, and for its real reason."""

from types import SimpleNamespace

import pytest
import torch

from minimal_vllm.model.experts import choose_experts, mix_experts
from minimal_vllm_lab.learn import check_experts as rules
from tests.lab.learn.mutants import module_with


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


@pytest.mark.breaks("experts")
@pytest.mark.parametrize("mutant", CHOICES, ids=lambda mutant: mutant.__name__)
def test_a_wrong_choice_is_found(mutant):
    assert lesson(choose=mutant).rule == CHOICES[mutant]


@pytest.mark.breaks("experts")
@pytest.mark.parametrize("mutant", MIXTURES, ids=lambda mutant: mutant.__name__)
def test_a_wrong_mixture_is_found(mutant):
    assert lesson(mix=mutant).rule == MIXTURES[mutant]


# ---- replaced text of the solution --------------------------------------------------------------

PROBABILITIES = "probabilities = logits.softmax(dim=-1, dtype=torch.float32)"
SCALED = "weights /= weights.sum(dim=-1, keepdim=True)"
CALL = "results[pairs] = expert(index, x[pairs // per_token])"
WEIGHTED = "weighted = results.view(*experts.shape, x.shape[1]) * weights[:, :, None]"
RETURN = "return weighted.sum(dim=1).to(x.dtype)"
WRONG_TEXTS = [
    ("CHOSEN", ".topk(per_token, dim=-1)", ".topk(per_token, dim=-1, largest=False)"),
    ("CHOSEN", ".topk(per_token, dim=-1)", ".topk(1, dim=-1)"),
    ("WEIGHTS", PROBABILITIES, "probabilities = logits.softmax(dim=0, dtype=torch.float32)"),
    ("CHOSEN", "return experts, weights", "return experts[:1].expand_as(experts), weights"),
    ("CHOSEN", "return experts, weights", "return experts.flip(1), weights.flip(1)"),
    ("CHOSEN", "return experts, weights", "return weights, experts"),
    ("WEIGHTS", PROBABILITIES, "probabilities = logits.float().sigmoid()"),
    ("WEIGHTS", PROBABILITIES, "probabilities = logits.float()"),
    ("WEIGHTS", PROBABILITIES, "probabilities = logits.softmax(dim=-1).float()"),
    ("WEIGHTS", SCALED, "weights = weights.softmax(dim=-1)"),
    ("WEIGHTS", SCALED, "weights /= weights.amax(dim=-1, keepdim=True)"),
    ("WEIGHTS", SCALED, "weights /= weights.sum()"),
    ("WEIGHTS", SCALED, "weights /= per_token"),
    ("WEIGHTS", "return experts, weights", "return experts, weights.double()"),
    ("ONCE", CALL, CALL.replace("x[pairs // per_token]", "x")),
    (
        "ONCE",
        CALL,
        "results[pairs] = torch.cat([expert(index, x[i : i + 1]) for i in pairs // per_token])",
    ),
    ("ONCE", "x[pairs // per_token]", "x[pairs % len(x)]"),
    ("ONCE", "if len(pairs):", "if True:"),
    ("SUM", CALL, "results[order[: len(pairs)]] = expert(index, x[pairs // per_token])"),
    ("SUM", WEIGHTED, WEIGHTED.replace(" * weights[:, :, None]", "")),
    ("SUM", WEIGHTED, WEIGHTED.replace("weights[:, :, None]", "weights[:, :1, None]")),
    ("SUM", WEIGHTED, WEIGHTED.replace("weights[:, :, None]", "weights.flip(1)[:, :, None]")),
    (
        "SUM",
        WEIGHTED,
        "weighted = results[order].view(*experts.shape, x.shape[1]) * weights[:, :, None]",
    ),
    ("SUM", RETURN, "return weighted.mean(dim=1).to(x.dtype)"),
    ("SUM", RETURN, "return weighted.sum(dim=1) + x"),
    ("SUM", RETURN, "return weighted.sum(dim=1).half()"),
    ("SUM", RETURN, "return weighted[:, 0]"),
    ("SUM", RETURN, "return weighted"),
    ("SUM", RETURN, "return weighted.sum(dim=1).double()"),
    ("SUM", RETURN, "return weighted.sum(dim=1)"),
]


@pytest.mark.breaks("experts")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_TEXTS)
def test_another_mistake_is_found(rule, old, new):
    found = rules.check_experts(module_with("experts", (old, new)))
    assert found.rule is getattr(rules, rule), "\n".join(found.lines())
