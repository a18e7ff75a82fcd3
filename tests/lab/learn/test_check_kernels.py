"""The checks of the Triton exercises name each mistake in a running softmax.

Some mutants are in PyTorch, which is faster than Triton's interpreter, others are kernels.
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
from minimal_vllm_lab.check.search import RAISES
from minimal_vllm_lab.learn.check_kernels import MERGED, check_decode_kernel, check_merge
from minimal_vllm_lab.learn.softmax_mistakes import MISTAKES, State, add_tile, walk
from tests.lab.learn.mutants import module_with


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

    return SimpleNamespace(MyAttention=MyAttention, take_keys=SimpleNamespace(fn=add_tile))


def test_a_running_softmax_without_a_mistake_passes():
    assert check_decode_kernel(kernel_of(partial(walk, add_tile))) is None


@pytest.mark.breaks("decode-kernel")
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


KEYS = "tl.load(cache.key + offsets, mask=is_key, other=0.0)"
VALUES = "tl.load(cache.value + offsets, mask=is_key, other=0.0)"
SCORES = "tl.dot(q_tile, tl.trans(keys), input_precision=PRECISION) * scale"
HIDES = 'tl.where(visible, scores, -float("inf"))'
HIGHEST = "peak = tl.maximum(softmax.peak, tl.max(scores, 1))"
WEIGHTS = "weights = tl.exp2(scores - safe_peak[:, None])"
FADES = "fade = tl.exp2(softmax.peak - safe_peak)"
SUM = "total = softmax.total * fade + tl.sum(weights, 1)"
ACC_FADES = "acc = softmax.acc * fade[:, None]\n"
ADDS = "acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)"
STATE = "return Softmax(peak, total, acc)"

# The text of the solution that is replaced, by what, the rule that is broken, what the lesson says.
WRONG_KERNELS = [
    (SUM, SUM.replace(" * fade", ""), rules.SAME, "total is not scaled down"),
    (ACC_FADES, "acc = softmax.acc\n", rules.SAME, "acc is not scaled down"),
    (FADES, "fade = peak * 0 + 1", rules.SAME, "neither total nor acc"),
    (FADES, "fade = tl.exp2(safe_peak - softmax.peak)", rules.A_NUMBER, ""),
    (WEIGHTS, WEIGHTS.replace("exp2", "exp"), rules.SAME, ""),
    ("tl.exp2", "tl.exp", rules.SAME, "exp is used instead of exp2"),
    (WEIGHTS, "weights = tl.exp2(scores - tl.max(scores, 1)[:, None])", rules.SAME, "own peak"),
    (WEIGHTS, "weights = tl.exp2(scores)", rules.SAME, ""),
    (WEIGHTS, "weights = tl.exp2(scores - softmax.peak[:, None])", rules.A_NUMBER, ""),
    (HIGHEST, "peak = tl.max(scores, 1)", rules.OVERFLOWS, ""),
    (HIGHEST, HIGHEST.replace("maximum", "minimum"), rules.A_NUMBER, ""),
    (HIGHEST, HIGHEST.replace("tl.max(scores", "tl.min(scores"), rules.A_NUMBER, ""),
    (HIDES, "scores", rules.SAME, "hidden scores must be -inf"),
    (HIDES, "tl.where(visible, scores, 0.0)", rules.SAME, "hidden scores must be -inf"),
    (HIDES, "tl.where(visible, scores, -10.0)", rules.SAME, ""),
    (HIDES, HIDES.replace("visible, scores", "~visible, scores"), rules.SAME, ""),
    (" * scale", "", rules.SAME, "not multiplied by scale"),
    (" * scale", " * scale * scale", rules.SAME, ""),
    (" * scale", " * scale * 1.4426950408889634", rules.SAME, ""),
    (KEYS, KEYS.replace("cache.key", "cache.value"), rules.SAME, ""),
    (VALUES, VALUES.replace("cache.value", "cache.key"), rules.SAME, "the keys are averaged"),
    (VALUES, "tl.load(cache.value + offsets)", rules.OWN_SLOTS_ONLY, "unwritten slot"),
    (ADDS, ADDS.replace(", acc, ", ", "), rules.SAME, "acc holds only"),
    (
        ADDS,
        ADDS.replace("weights.to(values.dtype)", "tl.full(weights.shape, 1.0, tl.float32)"),
        rules.SAME,
        "without their weights",
    ),
    (ADDS, ADDS + "\n    acc = acc / total[:, None]", rules.SAME, "once more at the end"),
    (SUM, "total = softmax.total * fade + tl.max(weights, 1)", rules.SAME, ""),
    (SUM, "total = softmax.total * fade + tl.sum(scores, 1)", rules.SAME, ""),
    (STATE, "return Softmax(softmax.peak, total, acc)", rules.SAME, "only the last tile"),
    (STATE, "return Softmax(total, peak, acc)", rules.SAME, "in each other's place"),
    (STATE, "return softmax", rules.A_NUMBER, ""),
    ("softmax.total * fade", "softmax.total * fade * fade", rules.SAME, ""),
    ("tl.trans(keys)", "keys", RAISES, ""),
    ("tl.max(scores, 1)", "tl.max(scores, 0)", RAISES, ""),
]


@pytest.mark.breaks("decode-kernel")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(("old", "new", "rule", "named"), WRONG_KERNELS)
def test_a_mistake_in_triton_is_found_and_named(old, new, rule, named, tmp_path):
    lesson = check_decode_kernel(module_with("decode-kernel", (old, new), folder=tmp_path))
    assert lesson is not None
    assert lesson.rule is rule, "\n".join(lesson.lines())
    assert named in lesson.found, lesson.found


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


@pytest.mark.breaks("merge")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(("old", "new", "named"), WRONG_MERGES)
def test_a_mistake_in_merging_is_found_and_named(old, new, named, tmp_path):
    lesson = check_merge(module_with("merge", (old, new), folder=tmp_path))
    assert lesson.rule is MERGED, "\n".join(lesson.lines())
    assert named in lesson.found, lesson.found
