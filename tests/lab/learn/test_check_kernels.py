"""The checks of the Triton exercises name each mistake in a running softmax.

The mutants are in PyTorch, which is faster than Triton's interpreter; one is a kernel.
"""

from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from minimal_vllm.attention.interface import AttentionOptions
from minimal_vllm.attention.paged import PagedStep
from minimal_vllm.attention.reference import gather_pages
from minimal_vllm_lab.check import attention as rules
from minimal_vllm_lab.learn.check_kernels import MERGED, check_decode_kernel, check_merge
from minimal_vllm_lab.learn.softmax_mistakes import MISTAKES, State, add_tile, walk
from tests.lab.learn.mutants import module_with
from tests.lab.learn.solutions import solution


def kernel_of(function):
    """Return an exercise whose kernel computes ``function`` for each request."""

    class Step(PagedStep):
        def __call__(self, q, k, v, cache, options: AttentionOptions):
            rows = enumerate(self.seq_lens.tolist())
            gathered = [
                [gather_pages(layer, self.block_tables[row], length).float() for layer in cache]
                for row, length in rows
            ]
            return torch.cat(
                [
                    function(q[row : row + 1].float(), *each, options.scale, None)
                    for row, each in enumerate(gathered)
                ]
            ).to(q.dtype)

    class MyAttention:
        def __init__(self, device):
            self.device = device

        def plan(self, batch):
            return Step.from_batch(batch, self.device)

    return SimpleNamespace(MyAttention=MyAttention)


def test_a_running_softmax_without_a_mistake_passes():
    assert check_decode_kernel(kernel_of(partial(walk, add_tile))) is None


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_of_a_kernel_is_named(mistake):
    lesson = check_decode_kernel(kernel_of(MISTAKES[mistake]))
    assert lesson.rule in (rules.SAME, rules.OVERFLOWS)
    assert mistake in lesson.found, lesson.found


def never_subtracts_the_peak(state, scores, values):
    weights = 2.0**scores
    acc = state.acc + torch.einsum("hk,hkd->hd", weights, values)
    return State(state.peak, state.total + weights.sum(1), acc)


def test_a_kernel_without_a_peak_fails_only_with_large_scores():
    lesson = check_decode_kernel(kernel_of(partial(walk, never_subtracts_the_peak)))
    assert lesson.rule is rules.OVERFLOWS


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_a_mistake_in_triton_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = solution("decode-kernel").replace("softmax.total * fade", "softmax.total")
    (tmp_path / "wrong_kernel.py").write_text(text)
    import wrong_kernel

    assert "total is not scaled down" in check_decode_kernel(wrong_kernel).found


# ---- merge --------------------------------------------------------------------------------------

PEAK = "peak = tl.maximum(softmax.peak, lse)"
FADE = "fade, weight = tl.exp2(softmax.peak - peak), tl.exp2(lse - peak)"
TOTAL = "total = softmax.total * fade + weight"
ACC = "acc = softmax.acc * fade[:, None] + part * weight[:, None]"
RESULT = "return Softmax(peak, total, acc)"
ZEROS = "tl.zeros_like(lse)"

# The text of the solution that is replaced, by what, and what the lesson says.
WRONG_MERGES = [
    (TOTAL, TOTAL.replace(" * fade", ""), "total is not scaled down"),
    (ACC, ACC.replace(" * fade[:, None]", ""), "acc is not scaled down"),
    (FADE, FADE.replace("(softmax.peak - peak)", "(peak - peak)"), "neither total nor acc"),
    (FADE, FADE.replace("softmax.peak - peak", "peak - softmax.peak"), "overflows"),
    (FADE, FADE.replace("exp2", "exp"), "exp is used instead of exp2"),
    (FADE, FADE.replace("lse - peak", "lse - lse"), "weight is always 1"),
    (FADE, FADE.replace("lse - peak", "peak - lse"), ""),
    (FADE, FADE.replace("lse - peak", "lse - softmax.peak"), "overflows"),
    (FADE, FADE.replace("fade, weight", "weight, fade"), ""),
    (FADE, f"fade, weight = {ZEROS} + 1, tl.exp2(lse)", "overflows"),
    (FADE, f"fade, weight = {ZEROS} + 1, lse", "lse instead of 2 ** lse"),
    (FADE, f"fade, weight = {ZEROS} + 1, {ZEROS} + 1", "the same weight"),
    (ACC, ACC.replace(" * weight[:, None]", ""), "without their weights"),
    (ACC, ACC.replace("part *", "part * part *"), ""),
    (ACC, ACC.replace("part *", "lse[:, None] *"), ""),
    (TOTAL, TOTAL.replace("+ weight", "+ 1"), ""),
    (TOTAL, "total = softmax.total + 1", "counts the parts"),
    (TOTAL, TOTAL.replace("+ weight", "+ lse"), ""),
    (PEAK, "peak = tl.minimum(softmax.peak, lse)", "overflows"),
    (PEAK, "peak = lse", "overflows"),
    (RESULT, "return Softmax(softmax.peak, total, acc)", "only the last part"),
    (RESULT, "return Softmax(peak, weight, part * weight[:, None])", "only the last part"),
    (RESULT, "return Softmax(peak, total, acc / total[:, None])", ""),
    (RESULT, "return Softmax(total, peak, acc)", ""),
    ("partials.lse + index", "partials.lse + index * D", ""),
    ("partials.lse + index", "partials.lse + index % 2", ""),
    ("partials.out + index[:, None] * D", "partials.out + index[:, None]", ""),
    ("partials.out + index[:, None] * D", "partials.out + index[:, None] % 2 * D", ""),
    ("(dim < D)[None, :]", "(dim < D - 1)[None, :]", ""),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(("old", "new", "named"), WRONG_MERGES)
def test_a_mistake_in_merging_is_found_and_named(old, new, named, tmp_path):
    lesson = check_merge(module_with("merge", (old, new), folder=tmp_path))
    assert lesson.rule is MERGED, "\n".join(lesson.lines())
    assert named in lesson.found, lesson.found
