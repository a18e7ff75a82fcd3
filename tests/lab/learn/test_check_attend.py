"""The check of kv-cache names common mistakes."""

from types import SimpleNamespace

import torch

from minimal_vllm.attention.reference import attend
from minimal_vllm_lab.learn.check_attend import HALF, STEP_BY_STEP, check_attend


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
    assert "are counted from the start of the request" in lesson.found


def test_a_well_known_mistake_is_named():
    lesson = check_attend(SimpleNamespace(attend=ignores_the_window))
    assert "the window is ignored" in lesson.found


def test_a_result_that_stays_in_float32_is_reported():
    def forgets_the_dtype(q, *others):
        return attend(q.float(), *others)

    assert check_attend(SimpleNamespace(attend=forgets_the_dtype)).rule is HALF
