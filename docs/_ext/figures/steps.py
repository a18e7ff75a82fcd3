"""Figures of steps and of the engine around them: who does what, and when."""

from array import array
from collections.abc import Iterator
from itertools import pairwise

from minimal_vllm.cache.block_pool import BlockPool
from minimal_vllm.cache.eviction import LRU
from minimal_vllm.config import SchedulerConfig
from minimal_vllm.engine.scheduler import Scheduler
from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm.step.request import Request

from .drawing import Drawing, figure


@figure(
    "The engine on one sheet",
    "A request is checked and waits. In each step the scheduler takes blocks from the pool "
    "and makes a plan; the plan becomes a batch of arrays; the model computes it, reading "
    "and writing the KV cache; the sampler draws tokens; they are appended to their "
    "requests, and become text. Requests that are not done are in the next step too.",
)
def engine(drawing: Drawing) -> float:
    """Draw the whole engine on one sheet."""
    rows = (
        ("prompt, over HTTP or in Python", "frame", "llm.py, server/"),
        ("waiting requests", "empty", "engine/admission.py"),
        ("scheduler: who computes what", "two", "engine/scheduler.py"),
        ("batch: arrays of all requests", "empty", "step/batch.py"),
        ("model: layers, attention", "one", "model/, attention/"),
        ("sampler: logits to tokens", "three", "sampling/"),
        ("text, streamed", "frame", "text/, server/"),
    )
    for index, (name, kind, where) in enumerate(rows):
        y = 6 + index * 56
        drawing.box(40, y, 210, 30, kind, name)
        drawing.text(145, y + 44, where, "middle small")
        if index < len(rows) - 1:
            drawing.line([(52, y + 31), (52, y + 54)])
    drawing.box(280, 118, 76, 30, "two", "block pool")
    drawing.line([(278, 133), (252, 133)])
    drawing.box(280, 230, 76, 30, "one", "KV cache")
    drawing.line([(278, 245), (252, 245)])
    drawing.line([(318, 150), (318, 228)], "rule")
    drawing.line([(38, 301), (22, 301), (22, 133), (38, 133)])
    drawing.text(11, 220, "each step", "small turned middle")
    return 392


@figure(
    "A long prompt, whole and in chunks",
    "A decodes, and B comes with a long prompt. Whole: one long step, in which A gets no "
    "token. In chunks: several shorter steps; A gets a token in each, and B's first token "
    "comes a little later.",
)
def chunked_timeline(drawing: Drawing) -> float:
    """Draw when a decoding request gets its tokens, beside a long prompt."""
    for y, name, widths in (
        (30, "whole", (16, 190, 16, 16)),
        (104, "in chunks", (16, 56, 56, 56, 56)),
    ):
        x = 36.0
        drawing.text(4, y - 12, name, "strong")
        drawing.text(4, y + 12, "A", "small")
        drawing.text(4, y + 38, "B", "small")
        for width in widths:
            drawing.box(x, y, min(width, 14), 18, "one")
            if width > 16:
                drawing.box(x, y + 24, width - 3, 18, "two", "prompt" if width > 100 else "chunk")
            elif x > 40:
                drawing.box(x, y + 24, 14, 18, "one")
            x += width
        drawing.line([(34, y + 48), (352, y + 48)])
    drawing.text(352, 168, "time", "end small")
    drawing.text(36, 184, "A's gap: one long step, or one short step at a time", "small")
    return 192


@figure(
    "Three steps on CPU and GPU",
    "One after the other: the CPU plans a step and launches its kernels one by one, the GPU "
    "computes, and the CPU plans the next step only then. With a recorded graph, the "
    "launches of a step are one command, and a step is shorter. Planning ahead, the CPU "
    "plans the next step while the GPU computes this one, and the GPU never waits.",
)
def step_timeline(drawing: Drawing) -> float:
    """Draw CPU and GPU: one after the other, with a graph, and ahead."""
    for y, name, width in ((24, "one after the other", 78), (106, "a recorded graph", 56)):
        drawing.text(4, y - 8, name, "strong")
        _lanes(drawing, y)
        for step in range(3):
            x = 36 + step * (width + 28)
            drawing.box(x, y, 26, 22, "two", f"{step + 1}")
            drawing.box(x + 27, y + 26, width, 22, "one", f"step {step + 1}")
    drawing.text(4, 180, "… and planning ahead", "strong")
    _lanes(drawing, 188)
    for step in range(3):
        drawing.box(36 + (27 + (step - 1) * 57 if step else 0), 188, 26, 22, "two", f"{step + 1}")
        drawing.box(63 + step * 57, 214, 56, 22, "one", f"step {step + 1}")
    drawing.text(36, 256, "CPU: plans a step", "small on-page-two")
    drawing.text(180, 256, "GPU: computes it", "small on-page-one")
    return 264


def _lanes(drawing: Drawing, y: float) -> None:
    for offset, name in ((15, "CPU"), (41, "GPU")):
        drawing.text(4, y + offset, name, "small")
        drawing.line([(34, y + offset + 8), (356, y + offset + 8)], "rule")


@figure(
    "The roofline of a step",
    "Time over the number of tokens in a step. To read the weights takes the same time for any "
    "number of tokens: a level line. Arithmetic takes time in proportion to the tokens: a line "
    "from the origin. A step takes at least the longer of the two. Left of the crossing it is "
    "memory-bound, right of it compute-bound. The crossing is at 9 tokens on our CPU, and at 160 "
    "on an H200.",
)
def roofline(drawing: Drawing) -> float:
    """Draw the two lines of the roofline, and the longer of both."""
    left, bottom, crossing, level = 30, 170, 150, 110
    drawing.line([(left, bottom), (left, 18)])
    drawing.line([(left, bottom), (354, bottom)])
    drawing.text(left + 8, 24, "time", "strong")
    drawing.text(354, bottom + 16, "tokens in the step", "small end")
    drawing.line([(left, bottom), (crossing, level)], "peak")
    drawing.line([(crossing, level), (350, level)], "peak")
    top = bottom - (330 - left) * (bottom - level) / (crossing - left)
    drawing.line([(left, level), (crossing, level), (330, top)], "curve")
    drawing.line([(crossing, level), (crossing, bottom)], "rule")
    drawing.text(40, level - 8, "read the weights", "small on-page-one")
    drawing.text(218, level - 52, "compute", "small on-page-one end")
    drawing.text(40, bottom + 16, "memory-bound", "small")
    drawing.text(crossing + 8, bottom - 8, "compute-bound", "small")
    drawing.text(crossing, bottom + 34, "9 tokens on our CPU, 160 on an H200", "small middle")
    drawing.line([(crossing, bottom + 22), (crossing, bottom + 3)])
    return 212


@figure(
    "Four places, in static batches and in continuous ones",
    "Ten requests of 4 to 30 tokens run in four places. In static batches A, B, C and D start "
    "together, and E starts only when A, the longest, is done after 30 steps; all is done after "
    "73 steps, and most of each place is empty. In continuous batches a request takes the first "
    "place that gets free: E starts after 6 steps, and all is done after 39.",
)
def batches(drawing: Drawing) -> float:
    """Draw which request has which of four places, from the lengths of chapter 7's script."""
    lengths = dict(zip("ABCDEFGHIJ", (30, 6, 14, 9, 26, 4, 11, 8, 17, 5), strict=True))
    scale = 4.4
    for y, title, is_continuous in ((22, "static batches", False), (134, "continuous", True)):
        free = [0, 0, 0, 0]
        drawing.text(4, y - 8, title, "strong")
        for number, (name, length) in enumerate(lengths.items()):
            if not is_continuous and number % 4 == 0:
                free = [max(free)] * 4
            place = min(range(4), key=free.__getitem__)
            kind = ("one", "two", "three")[number % 3]
            x = 30 + free[place] * scale
            drawing.box(x, y + place * 20, length * scale - 2, 18, kind, name)
            free[place] += length
        for place in range(4):
            drawing.text(4, y + place * 20 + 13, f"{place + 1}", "small")
        drawing.line([(30, y + 84), (354, y + 84)])
        drawing.text(30 + max(free) * scale, y + 98, f"{max(free)} steps", "small end")
    return 240


@figure(
    "Preemption, step by step",
    "A, B and C share nine blocks of four tokens. In step 6 A needs a fourth block and none is "
    "free: C, the last one, loses its three blocks and waits. In step 12 B needs a fifth block, is "
    "the last one itself, and loses its four. When A is done after 20 steps, B and C come back, "
    "and compute in one step all 17 and 10 tokens that they had. In step 25 C has to make room for "
    "B. All three finish.",
)
def preemption(drawing: Drawing) -> float:
    """Draw what the engine's own scheduler does with three requests and too few blocks."""
    kinds = {"A": "one", "B": "two", "C": "three"}
    left, wide, high = 30, 10, 7
    drawing.text(4, 14, "tokens that a request computes in a step", "strong")
    for row, name in enumerate(kinds):
        drawing.text(4, 40 + row * 30, name, "strong")
        drawing.line([(left, 46 + row * 30), (354, 46 + row * 30)], "rule")
    floor = 212
    plans = list(preempting_plans())
    for step, (computed, preempted, held) in enumerate(plans):
        x = left + step * wide
        for row, (name, kind) in enumerate(kinds.items()):
            y = 46 + row * 30
            if computed.get(name, 0) > 1:
                drawing.box(x, y - 16, wide - 2, 15, kind)
                drawing.text(x + 4, y - 18, str(computed[name]), "middle tiny")
            elif name in computed:
                drawing.box(x, y - 8, wide - 2, 7, kind)
            if name in preempted:
                drawing.text(x + 4, y - 5, "✕", "middle strong")
        height = 0
        for name, blocks in held.items():
            height += blocks * high
            drawing.box(x, floor - height, wide - 1, blocks * high - 1, kinds[name])
    drawing.text(4, 134, "blocks that each one holds, of 9", "strong")
    drawing.line([(left, floor - 9 * high), (354, floor - 9 * high)], "peak")
    drawing.text(4, floor - 9 * high + 9, "9", "small")
    drawing.line([(left, floor + 2), (354, floor + 2)])
    drawing.text(354, floor + 16, "steps", "small end")
    drawing.text(left, floor + 16, "✕ loses all its blocks, and waits", "small")
    return floor + 24


def preempting_plans() -> Iterator[tuple[dict[str, int], set[str], dict[str, int]]]:
    """Yield for each step who computes how many tokens, who is preempted, and who holds what."""
    limits = SchedulerConfig(max_model_len=36, block_size=4, enable_prefix_caching=False)
    scheduler = Scheduler(limits, BlockPool(9, LRU()))
    for name, prompt, new in (("A", 8, 20), ("B", 6, 18), ("C", 5, 14)):
        params = SamplingParams(max_tokens=new, ignore_eos=True)
        tokens = array("i", [1] * prompt)
        scheduler.add(Request(name, tokens, prompt, params, arrival=ord(name)))
    while scheduler.has_work:
        plan = scheduler.schedule()
        yield (
            {entry.request.request_id: entry.num_new for entry in plan.scheduled},
            {request.request_id for request in plan.preempted},
            {request.request_id: len(request.block_table) for request in scheduler.running},
        )
        scheduler.update(plan, [[1] for _ in plan.sampling])


@figure(
    "What a user feels, and what it is called",
    "A request is sent, waits in a queue, its prompt is computed, and the first token comes: that "
    "is TTFT, the time to first token. From there each gap to the next token is an ITL, an "
    "inter-token latency. One gap in the middle is a stall. E2EL, the end-to-end latency, goes "
    "from the start to the last token. TPOT is the mean of all gaps.",
)
def latencies(drawing: Drawing) -> float:
    """Draw the latencies of one request on a line of time."""
    first, ticks = 142, (142, 168, 194, 220, 294, 320, 346)
    drawing.line([(6, 58), (358, 58)], "rule")
    drawing.box(8, 44, 60, 26, "frame", "queue")
    drawing.box(70, 44, 70, 26, "two", "prompt")
    for tick in ticks:
        drawing.box(tick - 2, 44, 6, 26, "one")
    drawing.text(8, 14, "sent", "small")
    drawing.line([(9, 18), (9, 40)])
    drawing.text(first, 14, "first token", "small middle")
    drawing.line([(first + 1, 18), (first + 1, 40)])
    drawing.text(257, 40, "a stall", "small middle")
    drawing.text(348, 14, "last", "small middle")
    drawing.line([(347, 18), (347, 40)])
    drawing.span(8, first, 84, "TTFT: time to first token")
    for start, end in pairwise(ticks):
        drawing.line([(start + 2, 79), (start + 2, 84), (end, 84), (end, 79)], "rule")
    drawing.text(246, 97, "ITL: each gap", "middle small")
    drawing.span(8, 348, 116, "E2EL: end-to-end latency")
    drawing.text(178, 150, "TPOT = (E2EL − TTFT) / (tokens − 1): the mean gap", "small middle")
    return 158


@figure(
    "The two threads of the server",
    "The event loop has HTTP, tokenizer and JSON, and a mailbox for each request. The engine's "
    "thread takes commands between two steps, and then makes a step. Commands, add and abort, go "
    "through an inbox. Outputs come back in one message per step, for all requests, and are put "
    "into their mailboxes. Neither thread waits for the other.",
)
def server_threads(drawing: Drawing) -> float:
    """Draw event loop and engine's thread, and what goes between them."""
    drawing.box(4, 24, 124, 132, "frame-only")
    drawing.box(232, 24, 124, 132, "frame-only")
    drawing.text(66, 16, "event loop", "strong middle")
    drawing.text(294, 16, "engine's thread", "strong middle")
    drawing.box(12, 34, 108, 26, "frame", "HTTP, JSON")
    drawing.box(12, 64, 108, 26, "frame", "tokenizer")
    drawing.box(12, 122, 50, 26, "one", "A")
    drawing.box(70, 122, 50, 26, "two", "B")
    drawing.text(66, 114, "mailboxes", "small middle")
    drawing.box(240, 34, 108, 34, "frame", "take commands")
    drawing.line([(294, 69), (294, 92)])
    drawing.box(240, 94, 108, 40, "three", "Engine.step()")
    drawing.line([(349, 114), (354, 114), (354, 51), (350, 51)])
    drawing.line([(122, 48), (238, 48)])
    drawing.text(180, 40, "inbox: add, abort", "small middle")
    drawing.line([(238, 126), (180, 126), (124, 126)])
    drawing.text(180, 104, "one message", "small middle")
    drawing.text(180, 118, "per step", "small middle")
    drawing.box(160, 134, 18, 14, "one")
    drawing.box(182, 134, 18, 14, "two")
    return 162


@figure(
    "The server in processes",
    "The engine's process makes steps. Two HTTP processes listen at one port; each has HTTP, "
    "JSON, tokenizer and detokenizer of its own. Requests and aborts go to the engine in "
    "batches. After each step the engine sends each HTTP process one message, with the token ids "
    "of that process's requests. The text is made there.",
)
def server_processes(drawing: Drawing) -> float:
    """Draw the engine's process and two HTTP processes, and their messages."""
    drawing.box(4, 24, 112, 144, "frame-only")
    drawing.text(60, 16, "engine's process", "strong middle")
    drawing.box(12, 76, 96, 40, "three", "Engine.step()")
    drawing.text(292, 16, "HTTP, one port", "strong middle")
    for y, kind, names in ((24, "one", "A, C"), (100, "two", "B, D")):
        drawing.box(228, y, 128, 68, "frame-only")
        drawing.box(236, y + 8, 112, 24, "frame", "HTTP, JSON")
        drawing.box(236, y + 36, 112, 24, f"pale-{kind}", f"ids → text: {names}")
        drawing.line([(226, y + 22), (118, y + 22)])
        drawing.line([(118, y + 46), (226, y + 46)])
        drawing.box(150, y + 39, 18, 14, kind)
        drawing.box(172, y + 39, 18, 14, kind)
        drawing.text(172, y + 16, "requests, aborts", "small middle")
    drawing.text(172, 94, "one message per step", "small middle")
    return 174


@figure(
    "Time per token over requests at once",
    "Llama 3.2 3B on an L4, by the chapter's formula. With no request a step would take 27 ms, to "
    "read the weights, and overhead. Each further request of 384 tokens adds 0.17 ms. At 193 "
    "requests a step takes 60 ms, the limit. At 311 requests the memory is full, and further "
    "ones wait or are preempted.",
)
def capacity(drawing: Drawing) -> float:
    """Draw the formula of chapter 14, with the numbers of its script."""
    overhead, weights, cached, bandwidth = 0.0014, 6.43e9, 384 * 114_688, 0.85 * 300e9
    left, bottom, across, up = 34.0, 176.0, 0.82, 1.7

    def place(requests: float, milliseconds: float) -> tuple[float, float]:
        return left + requests * across, bottom - milliseconds * up

    def time(requests: float) -> float:
        return 1000 * (overhead + (weights + requests * cached) / bandwidth)

    drawing.line([place(0, 0), (left, 14)])
    drawing.line([place(0, 0), (354, bottom)])
    drawing.text(left + 8, 20, "ms per token", "strong")
    drawing.text(354, bottom + 32, "requests at once", "small end")
    fitting = (0.060 - overhead) * bandwidth / cached - weights / cached
    drawing.line([place(0, 60), place(380, 60)], "peak")
    drawing.text(left + 8, place(0, 60)[1] - 6, "the limit: 60 ms", "small on-page-two")
    drawing.line([place(0, time(0)), place(311, time(311))], "curve")
    drawing.line([place(311, time(311)), place(311, 0)], "rule")
    drawing.line([place(fitting, 60), place(fitting, 0)], "rule")
    drawing.text(left - 4, place(0, time(0))[1] + 4, f"{time(0):.0f}", "small end")
    drawing.text(left + 8, place(0, 17)[1], "weights and overhead", "small")
    drawing.text(place(fitting, 0)[0], bottom + 15, f"{fitting:.0f}", "small middle")
    drawing.text(place(311, 0)[0], bottom + 15, "311", "small middle")
    drawing.text(place(303, 0)[0], 28, "memory is full", "small end")
    return 216


@figure(
    "A router that looks at prompts",
    "A new prompt has blocks with the names h0, h1 and h2. The router keeps a dictionary from "
    "names to replicas. It finds h0 with replicas 0 and 2, h1 with replica 2 alone, and h2 "
    "nowhere. So it sends the prompt to replica 2, which computes only the rest. It would look at "
    "loads instead if replica 2 had far more requests than another.",
)
def routing(drawing: Drawing) -> float:
    """Draw a router's dictionary, and the replicas that it chooses from."""
    drawing.text(4, 14, "a new prompt, and its blocks' names", "strong")
    for index, kind in enumerate(("one", "one", "two")):
        drawing.box(4 + index * 44, 22, 40, 24, kind, f"h{index}")
    drawing.line([(62, 48), (62, 72)])
    drawing.box(4, 74, 352, 62, "frame-only")
    drawing.text(12, 90, "router", "strong")
    for index, (name, where) in enumerate((("h0", "0, 2"), ("h1", "2"), ("h2", "nowhere"))):
        x = 12 + index * 118
        drawing.box(x, 100, 34, 24, "two" if name == "h2" else "one", name)
        drawing.text(x + 40, 116, where)
    loads = (3, 5, 4, 2)
    held = (("h0", "g0"), ("f0",), ("h0", "h1"), ("f0", "f1"))
    for replica, (load, names) in enumerate(zip(loads, held, strict=True)):
        x = 4 + replica * 90
        drawing.box(x, 168, 82, 66, "frame-only")
        drawing.text(x + 41, 184, f"replica {replica}", "middle strong")
        for index, name in enumerate(names):
            kind = "one" if name.startswith("h") else "empty"
            drawing.box(x + 8 + index * 35, 190, 31, 20, kind, name)
        drawing.text(x + 41, 226, f"{load} requests", "middle small")
    drawing.line([(225, 137), (225, 166)])
    drawing.text(232, 156, "computes only h2", "small on-page-two")
    return 240
