"""The check of kv-cache names common mistakes."""

from types import SimpleNamespace

import pytest
import torch

from minimal_vllm.attention.reference import attend
from minimal_vllm_lab.learn import check_attend as rules
from minimal_vllm_lab.learn.check_attend import HALF, IN_FLOAT32, STEP_BY_STEP, check_attend
from tests.lab.learn.mutants import module_with


def computes_in_the_dtype_of_q(q, keys, values, scale, window):
    keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
    distance = torch.arange(len(keys) - len(q), len(keys))[:, None] - torch.arange(len(keys))
    visible = (distance >= 0) & (distance < (window or len(keys) + 1))
    scores = torch.einsum("nhd,mhd->hnm", q, keys) * scale
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, values)


def computes_only_the_softmax_in_float32(q, keys, values, scale, window):
    keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
    distance = torch.arange(len(keys) - len(q), len(keys))[:, None] - torch.arange(len(keys))
    visible = (distance >= 0) & (distance < (window or len(keys) + 1))
    scores = (torch.einsum("nhd,mhd->hnm", q, keys) * scale).float()
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, values.float()).to(q.dtype)


def masks_as_if_all_were_new(q, keys, values, scale, window):
    """Use ``tril`` without an offset: correct for a whole prompt, wrong for a token after it."""
    scores = torch.einsum("nhd,mhd->hnm", q, keys.repeat_interleave(q.shape[1] // keys.shape[1], 1))
    seen = torch.ones(len(q), len(keys)).tril().bool()
    if window:
        seen &= torch.ones(len(q), len(keys)).triu(1 - window).bool()
    weights = (scores * scale).masked_fill(~seen, -torch.inf).softmax(-1)
    values = values.repeat_interleave(q.shape[1] // values.shape[1], 1)
    return torch.einsum("hnm,mhd->nhd", weights, values)


def ignores_the_window(q, keys, values, scale, window):
    return attend(q, keys, values, scale, None)


def test_a_mistake_with_a_single_token_is_reported_at_that_token():
    lesson = check_attend(SimpleNamespace(attend=masks_as_if_all_were_new))
    assert lesson.rule is STEP_BY_STEP
    assert lesson.history[-1] == "the token at position 1 alone, with 1 in the cache"
    assert "positions of the new tokens are counted from 0" in lesson.found


@pytest.mark.breaks("kv-cache")
def test_a_well_known_mistake_is_named():
    lesson = check_attend(SimpleNamespace(attend=ignores_the_window))
    assert "the window is ignored" in lesson.found


def test_a_result_that_stays_in_float32_is_reported():
    def forgets_the_dtype(q, *others):
        return attend(q.float(), *others)

    assert check_attend(SimpleNamespace(attend=forgets_the_dtype)).rule is HALF


@pytest.mark.breaks("kv-cache")
@pytest.mark.parametrize(
    "mistaken", [computes_in_the_dtype_of_q, computes_only_the_softmax_in_float32]
)
def test_scores_that_are_rounded_to_float16_are_reported(mistaken):
    lesson = check_attend(SimpleNamespace(attend=mistaken))
    assert lesson.rule is IN_FLOAT32
    assert "exactly the result" not in lesson.found


def test_attention_whose_products_are_in_another_order_passes():
    def scales_the_queries(q, keys, values, scale, window):
        return attend(q.float() * scale, keys.float(), values.float(), 1.0, window).to(q.dtype)

    assert check_attend(SimpleNamespace(attend=scales_the_queries)) is None


def test_a_difference_is_shown_at_the_head_that_is_wrong():
    def spoils_head_1(q, *others):
        result = attend(q, *others)
        result[:, 1:2] += 1
        return result

    lesson = check_attend(SimpleNamespace(attend=spoils_head_1))
    assert lesson.found.startswith("head 1 is [")
    assert lesson.found.endswith("], off by 1: the token at position 0")
    assert lesson.expected.startswith("head 1 is [")
    assert lesson.expected.endswith("] (±0.0001)")


GROUPS = "repeat_interleave(num_heads // num_kv_heads, dim=1)"
MASK = "hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)"

# The text of the solution that is replaced, and by what.
WRONG_TEXTS = [
    ("SAME", "* scale", ""),
    ("SAME", "* scale", "* scale * scale"),
    ("SAME", "* scale", "/ scale"),
    ("SAME", GROUPS, "repeat(1, num_heads // num_kv_heads, 1)"),
    ("SAME", MASK, MASK.replace("distance < 0", "distance <= -2")),
    ("SAME", MASK, MASK.replace(">= window", "> window")),
    ("SAME", MASK, MASK.replace(">= window", ">= window - 1")),
    ("SAME", MASK, "hidden = distance < 0"),
    ("SAME", MASK, "hidden = distance > 0"),
    ("SAME", MASK, "hidden = distance < -m"),
    ("SAME", "masked_fill(hidden, -torch.inf)", "masked_fill(hidden, 0)"),
    ("SAME", "softmax(dim=-1)", "softmax(dim=0)"),
    ("SAME", "scores.softmax(dim=-1)", "scores.sigmoid()"),
    ("SAME", "scores.softmax(dim=-1)", "scores.exp()"),
    ("SAME", "probabilities, values)", "probabilities, keys)"),
    ("STEP_BY_STEP", "torch.arange(m - n, m, ", "torch.arange(n, "),
    ("HALF", ".to(q.dtype)", ""),
    ("SAME", ".to(q.dtype)", ".bfloat16().to(q.dtype)"),
]


@pytest.mark.breaks("kv-cache")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_TEXTS)
def test_a_mistake_in_the_text_is_found(rule, old, new):
    lesson = check_attend(module_with("kv-cache", (old, new)))
    assert lesson.rule.statement == getattr(rules, rule).statement, "\n".join(lesson.lines())
