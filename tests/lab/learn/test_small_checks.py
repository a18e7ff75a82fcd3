"""Each mistake that a learner makes in an exercise of functions is found, and for its reason."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimal_vllm.attention.paged import write_to_cache
from minimal_vllm.engine.engine import Engine
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.supported import DTYPE_BYTES
from minimal_vllm.sampling import filters
from minimal_vllm.sampling.draw import draw
from minimal_vllm.step.batch import _pad_block_tables, slots
from minimal_vllm.text.detokenizer import Detokenizer
from minimal_vllm_lab.learn import (
    check_ahead,
    check_costs,
    check_filters,
    check_stream,
    check_tables,
)
from minimal_vllm_lab.sim.cost_model import RooflineCostModel
from tests.lab.learn.mutants import module_with

# ---- bytes-and-flops ----------------------------------------------------------------------------

COUNT = ModelConfig.num_parameters.fget
WRONG_COUNTS = {
    "tied twice": lambda m: COUNT(m) + m.vocab_size * m.hidden_size * m.tie_word_embeddings,
    "no qkv bias": lambda m: COUNT(m) - m.num_layers * m.head_dim * m.num_heads * m.qkv_bias,
    "no o bias": lambda m: COUNT(m) - m.num_layers * m.hidden_size * m.o_bias,
    "no final norm": lambda m: COUNT(m) - m.hidden_size,
    "no qk norm": lambda m: COUNT(m) - m.num_layers * 2 * m.head_dim * bool(m.qk_norm),
    "two matrices": lambda m: COUNT(m) - m.num_layers * m.hidden_size * m.intermediate_size,
}
WRONG_BYTES = {
    "query heads": lambda m, d: 2 * m.num_layers * m.num_heads * m.head_dim * DTYPE_BYTES[d],
    "keys only": lambda m, d: m.num_layers * m.num_kv_heads * m.head_dim * DTYPE_BYTES[d],
    "one layer": lambda m, d: 2 * m.num_kv_heads * m.head_dim * DTYPE_BYTES[d],
    "two bytes": lambda m, _: 4 * m.num_layers * m.num_kv_heads * m.head_dim,
}
WRONG_SECONDS = {
    "sum": lambda m, w, n: w * m._itemsize / m._bandwidth + 2 * w * n / m._matmul_rate,
    "one operation": lambda m, w, n: max(w * m._itemsize / m._bandwidth, w * n / m._matmul_rate),
    "read per row": lambda m, w, n: n * w * m._itemsize / m._bandwidth,
    "no item size": lambda m, w, n: max(w / m._bandwidth, 2 * w * n / m._matmul_rate),
}


def costs(model=None, cost_model=None):
    return SimpleNamespace(
        MyModel=type("MyModel", (ModelConfig,), model or {}),
        MyCostModel=type("MyCostModel", (RooflineCostModel,), cost_model or {}),
    )


@pytest.mark.breaks("bytes-and-flops")
@pytest.mark.parametrize("name", WRONG_COUNTS)
def test_a_wrong_number_of_parameters_is_found(name):
    module = costs(model={"num_parameters": property(WRONG_COUNTS[name])})
    assert check_costs.check_costs(module).rule is check_costs.PARAMETERS


@pytest.mark.breaks("bytes-and-flops")
@pytest.mark.parametrize("name", WRONG_BYTES)
def test_wrong_bytes_per_token_are_found(name):
    module = costs(model={"kv_bytes_per_token": WRONG_BYTES[name]})
    assert check_costs.check_costs(module).rule is check_costs.KV_BYTES


@pytest.mark.breaks("bytes-and-flops")
@pytest.mark.parametrize("name", WRONG_SECONDS)
def test_wrong_seconds_are_found(name):
    module = costs(cost_model={"_matmul": WRONG_SECONDS[name]})
    assert check_costs.check_costs(module).rule is check_costs.MATMUL


# The text of the solution that is replaced, and by what.
WRONG_COST_TEXTS = [
    ("PARAMETERS", "(1 if self.tie_word_embeddings else 2)", "2"),
    ("PARAMETERS", "2 * q_size + 2 * kv_size", "q_size + 2 * kv_size"),
    ("PARAMETERS", "2 * q_size + 2 * kv_size", "4 * q_size"),
    ("PARAMETERS", "self.norms.count + 1", "self.norms.count"),
    ("PARAMETERS", "self.num_layers * self.norms.count", "self.num_layers"),
    ("PARAMETERS", "self.num_heads * self.head_dim, ", "self.hidden_size, "),
    ("PARAMETERS", "2 * self.intermediate_size + self", "self.intermediate_size + self"),
    ("PARAMETERS", "return self.num_layers * attention", "return attention"),
    ("KV_BYTES", "DTYPE_BYTES[dtype]", "DTYPE_BYTES[dtype] * 8"),
    ("KV_BYTES", "self.num_kv_heads * self.head_dim * D", "self.hidden_size * D"),
    ("KV_BYTES", "* DTYPE_BYTES[dtype]", ""),
    ("MATMUL", "return max(", "return min("),
    ("MATMUL", "2 * num_weights * num_rows", "2 * num_weights"),
]


@pytest.mark.breaks("bytes-and-flops")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_COST_TEXTS)
def test_another_wrong_size_or_time_is_found(rule, old, new):
    lesson = check_costs.check_costs(module_with("bytes-and-flops", (old, new)))
    assert lesson.rule is getattr(check_costs, rule), "\n".join(lesson.lines())


# ---- block-table --------------------------------------------------------------------------------


def padded_with_minus_1(requests):
    padded = _pad_block_tables(requests)
    for row, request in zip(padded, requests, strict=True):
        row[len(request.block_table) :] = -1
    return padded


def writes_to_a_copy(k, v, cache, slots):
    for layer, new in zip(cache, (k, v), strict=True):
        layer.transpose(1, 2).reshape(-1, *new.shape[1:])[slots] = new


def writes_without_transposing(k, v, cache, slots):
    for layer, new in zip(cache, (k, v), strict=True):
        layer.view(-1, *new.shape[1:])[slots] = new


WRONG_TABLES = [
    ("PADDED", "pad_block_tables", padded_with_minus_1),
    ("PADDED", "pad_block_tables", lambda requests: _pad_block_tables(requests).astype(np.int64)),
    ("SLOT", "slots", lambda table, row, at, size: table[row, at // size].astype(np.int64) * size),
    ("SLOT", "slots", lambda table, row, at, size: slots(table, row * 0, at, size)),
    ("SLOT", "slots", lambda _table, _row, at, _size: at.astype(np.int64)),
    ("SLOT", "slots", lambda *arguments: slots(*arguments).astype(np.int32)),
    ("WRITTEN", "write_to_cache", lambda k, _, cache, slots: write_to_cache(k, k, cache, slots)),
    ("WRITTEN", "write_to_cache", writes_to_a_copy),
    ("WRITTEN", "write_to_cache", writes_without_transposing),
]


@pytest.mark.breaks("block-table")
@pytest.mark.parametrize(("rule", "name", "mutant"), WRONG_TABLES)
def test_a_wrong_table_slot_or_write_is_found(rule, name, mutant):
    right = {
        "pad_block_tables": _pad_block_tables,
        "slots": slots,
        "write_to_cache": write_to_cache,
    }
    module = SimpleNamespace(**{**right, name: mutant})
    assert check_tables.check_tables(module).rule is getattr(check_tables, rule)


PADDING = "padded = np.zeros("
COPY = "padded[np.arange(lengths.max()) < lengths[:, None]] = joined"
BLOCK = "block = block_tables[row, positions // block_size].astype(np.int64)"
SLOTS = "return block * block_size + positions % block_size"
KEY = "cache.key.transpose(1, 2)[block, offset] = as_cached(k, cache.key.dtype)"
VALUE = "cache.value.transpose(1, 2)[block, offset] = as_cached(v, cache.value.dtype)"

# The text of the solution that is replaced, and by what.
WRONG_TABLE_TEXTS = [
    (
        "PADDED",
        COPY,
        "padded[np.arange(lengths.max()) >= (lengths.max() - lengths)[:, None]] = joined",
    ),
    ("PADDED", COPY, "padded[0, : lengths[0]] = joined[: lengths[0]]"),
    ("PADDED", "lengths.max()", "(lengths.max() + 1)"),
    ("PADDED", COPY, f"{COPY}\n    padded.sort(axis=1)"),
    ("PADDED", "return padded", "return padded[:, : lengths.min()]"),
    ("PADDED", "return padded", "return padded.T"),
    ("PADDED", "return padded", "return padded.tolist()"),
    ("SLOT", SLOTS, "return block * block_size + positions // block_size"),
    ("SLOT", SLOTS, "return block + positions % block_size"),
    ("SLOT", SLOTS, "return block * block_size + positions"),
    ("SLOT", SLOTS, "return (positions % block_size) * block_size + block"),
    ("SLOT", BLOCK, BLOCK.replace("positions //", "np.arange(len(row)) //")),
    (
        "SLOT",
        BLOCK,
        BLOCK.replace("positions // block_size", "positions % block_size % block_tables.shape[1]"),
    ),
    ("SLOT", BLOCK, "block = positions // block_size"),
    ("SLOT", BLOCK, BLOCK.replace("positions //", "(positions + 1) // 2 //")),
    ("SLOT", SLOTS, SLOTS + " + 0.0"),
    ("SLOT", SLOTS, SLOTS.replace("return ", "return (") + ").tolist()"),
    ("WRITTEN", KEY, KEY.replace("block, offset]", "offset, block]")),
    ("WRITTEN", VALUE, ""),
    ("WRITTEN", KEY, KEY + "; k = v; v = v * 0"),
    (
        "WRITTEN",
        KEY,
        KEY.replace("[block, offset]", "[block, offset, 0]").replace("(k,", "(k[:, 0],"),
    ),
    ("WRITTEN", KEY, KEY.replace(" = ", " += ")),
    ("WRITTEN", KEY, "cache.key.zero_(); " + KEY),
    ("WRITTEN", "slots % block_size\n", "slots * 0\n"),
    ("WRITTEN", KEY, "cache = type(cache)(*(each.clone() for each in cache)); " + KEY),
    (
        "WRITTEN",
        KEY,
        KEY.replace("[block, offset]", "[block[-1], offset[-1]]").replace("(k,", "(k[-1],"),
    ),
    ("WRITTEN", KEY, "cache.key[block] = as_cached(k, cache.key.dtype)[:, :, None]"),
]


@pytest.mark.breaks("block-table")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_TABLE_TEXTS)
def test_another_wrong_table_slot_or_write_is_found(rule, old, new):
    lesson = check_tables.check_tables(module_with("block-table", (old, new)))
    assert lesson.rule is getattr(check_tables, rule), "\n".join(lesson.lines())


# ---- sampler ------------------------------------------------------------------------------------


def min_p_of_the_probability(shifted, rows):
    for logits, row in zip(shifted, rows, strict=True):
        logits[logits.softmax(-1) < row.params.min_p] = -torch.inf


def min_p_excluding_equals(shifted, rows):
    for logits, row in zip(shifted, rows, strict=True):
        if row.params.min_p:
            logits[logits <= np.log(row.params.min_p)] = -torch.inf


def top_k_with_all_ties(shifted, rows):
    for logits, row in zip(shifted, rows, strict=True):
        if 0 < row.params.top_k < len(logits):
            logits[logits < logits.topk(row.params.top_k).values[-1]] = -torch.inf


def top_k_in_a_copy(shifted, rows):
    kept = shifted.clone()
    filters.keep_top_k(kept, rows)
    return kept


def top_p_cuts(is_cut):
    def keep(shifted, rows):
        for logits, row in zip(shifted, rows, strict=True):
            probs, order = logits.double().softmax(-1).sort(descending=True, stable=True)
            if row.params.top_p < 1:
                cut = is_cut(probs.cumsum(0), probs, row.params.top_p)
                logits[order[cut]] = -torch.inf

    return keep


def draw_with(shifted, uniforms, *, right=True, scaled=True):
    sums = shifted.double().exp().cumsum(-1)
    numbers = torch.tensor(uniforms)[:, None] * (sums[:, -1:] if scaled else 1)
    return torch.searchsorted(sums, numbers, right=right).squeeze(1)


WRONG_FILTERS = [
    (check_filters.KEEPS["min_p"], "keep_min_p", min_p_of_the_probability),
    (check_filters.KEEPS["min_p"], "keep_min_p", min_p_excluding_equals),
    (check_filters.KEEPS["top_k"], "keep_top_k", top_k_with_all_ties),
    (check_filters.IN_PLACE, "keep_top_k", top_k_in_a_copy),
    (check_filters.KEEPS["top_p"], "keep_top_p", top_p_cuts(lambda sums, _, p: sums > p)),
    (check_filters.KEEPS["top_p"], "keep_top_p", top_p_cuts(lambda sums, own, p: sums - own > p)),
    (check_filters.DRAWS, "draw", lambda shifted, _: shifted.argmax(-1)),
    (check_filters.DRAWS, "draw", partial(draw_with, right=False)),
    (check_filters.DRAWS, "draw", partial(draw_with, scaled=False)),
]


@pytest.mark.breaks("sampler")
@pytest.mark.parametrize(("rule", "name", "mutant"), WRONG_FILTERS)
def test_a_wrong_filter_or_draw_is_found(rule, name, mutant):
    right = {f"keep_{each}": getattr(filters, f"keep_{each}") for each in check_filters.OPTIONS}
    module = SimpleNamespace(**{**right, "draw": draw, name: mutant})
    assert check_filters.check_filters(module).rule is rule


# The text of the solution that is replaced, and by what.
WRONG_FILTER_TEXTS = [
    ("min_p", "logits < floor", "logits > floor"),
    ("min_p", "log(rows[i].params.min_p)", "-rows[i].params.min_p"),
    ("min_p", "for i in index])[:, None]", "for i in index])[:1, None]"),
    ("top_k", "if 0 < row.params.top_k < shifted.shape[1]]", "if row.params.top_k == 1]"),
    (
        "top_k",
        "top_k = torch.tensor([rows[i].params.top_k",
        "top_k = torch.tensor([rows[0].params.top_k",
    ),
    (
        "top_k",
        "top_k = torch.tensor([rows[i].params.top_k",
        "top_k = torch.tensor([max(1, rows[i].params.top_k - 1)",
    ),
    ("top_p", "before < share[part]", "before <= share[part]"),
    ("top_p", "weights.cumsum(dim=-1) - weights", "weights.cumsum(dim=-1)"),
    ("top_p", ".sort(descending=True)", ".sort()"),
    ("top_p", "[rows[i].params.top_p for", "[rows[0].params.top_p for"),
    ("top_p", "if row.params.top_p < 1]", "if row.params.top_p < 0.5]"),
]


@pytest.mark.breaks("sampler")
@pytest.mark.parametrize(("name", "old", "new"), WRONG_FILTER_TEXTS)
def test_another_wrong_filter_is_found(name, old, new):
    lesson = check_filters.check_filters(module_with("sampler", (old, new)))
    assert lesson is not None
    assert lesson.rule is check_filters.KEEPS[name], "\n".join(lesson.lines())


# ---- run-ahead ----------------------------------------------------------------------------------


def step_with(engine, *, ahead=True, asks=True, knows_cpu=True, waits_for_all=False, drops=False):
    outputs = [] if engine._in_flight else engine._launch_next()
    may = (engine._runs_ahead or not knows_cpu) and engine._in_flight
    if ahead and may and not (asks and engine.scheduler.needs_pending_tokens()):
        outputs += engine._launch_next()
    if engine._in_flight:
        finished = engine._finish_oldest()
        outputs += [] if drops else finished
    while waits_for_all and engine._in_flight:
        outputs += engine._finish_oldest()
    return outputs


def launches_after_waiting(engine):
    outputs = [] if engine._in_flight else engine._launch_next()
    outputs += engine._finish_oldest() if engine._in_flight else []
    if engine._runs_ahead and not engine.scheduler.needs_pending_tokens():
        outputs += engine._launch_next()
    return outputs


WRONG_STEPS = [
    ("AHEAD", partial(step_with, ahead=False)),
    ("NOT_AHEAD", partial(step_with, asks=False)),
    ("NOT_AHEAD", partial(step_with, knows_cpu=False)),
    ("WAITS_FOR_OLDEST", partial(step_with, waits_for_all=True)),
    ("RETURNED", partial(step_with, drops=True)),
    ("AHEAD", launches_after_waiting),
]


@pytest.mark.breaks("run-ahead")
@pytest.mark.parametrize(("rule", "mutant"), WRONG_STEPS)
def test_a_wrong_step_is_found(rule, mutant):
    engine = type("MyEngine", (Engine,), {"step": lambda self: mutant(self)})
    lesson = check_ahead.check_ahead(SimpleNamespace(MyEngine=engine))
    assert lesson.rule is getattr(check_ahead, rule)


MAY = "self._runs_ahead and one_runs and not self.scheduler.needs_pending_tokens()"
LAUNCHES = f"if {MAY}:\n            outputs += self._launch_next()"
BEGINS = "if not self._in_flight:\n            outputs += self._launch_next()"
WAITS = "if self._in_flight:\n            outputs += self._finish_oldest()"

# The text of the solution that is replaced, and by what.
WRONG_STEP_TEXTS = [
    ("AHEAD", LAUNCHES, "pass"),
    ("AHEAD", MAY, f"{MAY} and len(self._in_flight) > 1"),
    ("AHEAD", MAY, f"{MAY} and not self.scheduler.waiting"),
    ("AHEAD", MAY, f"{MAY} and len(self.scheduler.running) > 1"),
    ("AHEAD", MAY, MAY.replace("not self.scheduler", "self.scheduler")),
    ("NOT_AHEAD", MAY, MAY.replace("self._runs_ahead and ", "")),
    ("NOT_AHEAD", MAY, "self._runs_ahead and self._in_flight"),
    ("NOT_AHEAD", f"if {MAY}", "if self._in_flight"),
    ("NOT_AHEAD", BEGINS, "outputs += self._launch_next()"),
    ("NOT_AHEAD", LAUNCHES, LAUNCHES + "\n            outputs += self._launch_next()"),
    ("WAITS_FOR_OLDEST", WAITS, WAITS.replace("if", "while")),
    ("WAITS_FOR_OLDEST", WAITS, WAITS.replace("if self._in_flight", "if len(self._in_flight) > 1")),
    ("WAITS_FOR_OLDEST", WAITS, "pass"),
    ("WAITS_FOR_OLDEST", WAITS, "self._in_flight.rotate()\n        " + WAITS),
    (
        "WAITS_FOR_OLDEST",
        WAITS,
        f"{WAITS}\n        if not outputs and self._in_flight:\n"
        "            outputs += self._finish_oldest()",
    ),
    ("RETURNED", WAITS, WAITS.replace("outputs +=", "outputs =") + "[:1]"),
    ("RETURNED", WAITS, WAITS.replace("outputs += ", "")),
    ("RETURNED", "return outputs", "return outputs[:1]"),
    ("RETURNED", "return outputs", "return outputs * 2"),
    ("RETURNED", "return outputs", "return [each for each in outputs if each.finished]"),
    ("RETURNED", "return outputs", "return [each for each in outputs if not each.finished]"),
    ("RETURNED", "return outputs", "return"),
]


@pytest.mark.breaks("run-ahead")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_STEP_TEXTS)
def test_another_wrong_step_is_found(rule, old, new):
    lesson = check_ahead.check_ahead(module_with("run-ahead", (old, new)))
    assert lesson.rule is getattr(check_ahead, rule), "\n".join(lesson.lines())


# ---- stream-text --------------------------------------------------------------------------------


def add_with(self, new, *, early=0, included=None, searched=None, drops=False, holds=False):
    text = self._held_back + new
    num_old = len(self._held_back) if searched is None else searched
    if self.num_tokens + early > self._params.min_tokens and (
        found := self._find_stop(text, num_old)
    ):
        end, stop = found
        includes = self._params.include_stop_str_in_output if included is None else included
        self._pieces.append(text[: end if includes else end - len(stop)])
        self._held_back = self._held_back if holds else ""
        return stop
    cut = len(text) - self._num_undecided(text)
    self._pieces.append(text[:cut])
    self._held_back = "" if drops else text[cut:]
    return None


def undecided(self, text, *, stops=None, first=None):
    for length in first or range(len(text), 0, -1):
        if any(len(s) > length and s.startswith(text[-length:]) for s in stops or self._stops):
            return length
    return 0


WRONG_STREAMS = [
    ("ENDS", "_add", partial(add_with, early=1)),
    ("ENDS", "_add", partial(add_with, searched=0)),
    ("CUT", "_add", partial(add_with, included=False)),
    ("CUT", "_add", partial(add_with, included=True)),
    ("CUT", "_add", partial(add_with, holds=True)),
    ("LOST", "_add", partial(add_with, drops=True)),
    ("CERTAIN", "_num_undecided", lambda _self, _text: 0),
    ("CERTAIN", "_num_undecided", lambda self, text: undecided(self, text, first=(1,))),
    ("CERTAIN", "_num_undecided", lambda self, text: undecided(self, text, stops=self._stops[:1])),
    ("AT_ONCE", "_num_undecided", lambda _self, text: min(len(text), 2)),
]


@pytest.mark.breaks("stream-text")
@pytest.mark.parametrize(("rule", "name", "mutant"), WRONG_STREAMS)
def test_a_wrong_stream_is_found(rule, name, mutant):
    methods = {name: lambda self, text: mutant(self, text)}
    detokenizer = type("MyDetokenizer", (Detokenizer,), methods)
    lesson = check_stream.check_stream(SimpleNamespace(MyDetokenizer=detokenizer))
    assert lesson.rule is getattr(check_stream, rule), "\n".join(lesson.lines())


FOUND = "self._find_stop(text, len(self._held_back))"
END = "end if self._params.include_stop_str_in_output else end - len(stop)"
HELD = "self._held_back = text[certain:]"
ENOUGH = "if self.num_tokens > self._params.min_tokens:"

# The text of the solution that is replaced, and by what.
WRONG_STREAM_TEXTS = [
    ("ENDS", ENOUGH, ENOUGH.replace(" > ", " >= ")),
    ("ENDS", ENOUGH, "if True:"),
    ("ENDS", ENOUGH, "if len(text) > self._params.min_tokens:"),
    ("ENDS", FOUND, "self._find_stop(new, 0)"),
    ("ENDS", FOUND, "self._find_stop(self.text + text, len(self.text))"),
    ("ENDS", FOUND, "next(((text.find(s) + len(s), s) for s in self._stops if s in text), None)"),
    ("ENDS", FOUND, "next(((len(text), s) for s in self._stops if text.endswith(s)), None)"),
    ("ENDS", "return stop\n", "return None\n"),
    ("ENDS", "return stop\n", "return stop and text\n"),
    ("CUT", END, "end - len(stop)"),
    ("CUT", END, "end"),
    ("CUT", END, END.replace("end if", "len(text) if")),
    ("CUT", END, END.replace("end - len(stop)", "len(text) - len(stop)")),
    ("CUT", END, END.replace("end - len(stop)", "end - len(stop) - 1")),
    ("CUT", "                text = text[:certain]\n", ""),
    ("CUT", "self._utf8.reset()", "pass"),
    ("LOST", HELD, "self._held_back = ''"),
    ("LOST", HELD, "self._held_back = text[certain + 1 :]"),
    ("LOST", HELD, "self._held_back = text"),
    ("LOST", "text = self._held_back + new", "text = new"),
    ("LOST", "text = self._held_back + new", "text = new + self._held_back"),
    ("LOST", "self._pieces.append(text[:certain])", "self._pieces.append(new[:certain])"),
    ("CERTAIN", "certain = len(text) - self._num_undecided(text)", "certain = len(text)"),
    (
        "CERTAIN",
        "certain = len(text) - self._num_undecided(text)",
        "certain = len(text) - self._num_undecided(new)",
    ),
    ("CERTAIN", "range(min(len(text), longest), 0, -1)", "range(1, min(len(text), longest) + 1)"),
    (
        "CERTAIN",
        "range(min(len(text), longest), 0, -1)",
        "range(min(len(text), longest - 1), 0, -1)",
    ),
    ("CERTAIN", "any(stop.startswith(end)", "all(stop.startswith(end)"),
    ("CERTAIN", "default=1) - 1", "default=1) - 2"),
    ("AT_ONCE", "stop.startswith(end) and stop != end", "end in stop"),
    ("AT_ONCE", " and stop != end", ""),
    ("AT_ONCE", "return length", "return longest"),
    ("AT_ONCE", "stop.startswith(end)", "stop.startswith(end[:1])"),
]


@pytest.mark.breaks("stream-text")
@pytest.mark.parametrize(("rule", "old", "new"), WRONG_STREAM_TEXTS)
def test_another_wrong_stream_is_found(rule, old, new):
    lesson = check_stream.check_stream(module_with("stream-text", (old, new)))
    assert lesson.rule is getattr(check_stream, rule), "\n".join(lesson.lines())
