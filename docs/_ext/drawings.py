"""The figures of the course: ``{drawing} name`` puts one into a page.

They are SVG within the page, so that they take the page's colors, by day and by night. 360 units
are the width of a phone, where a unit is about a pixel. Every figure has a title and a description
for those who hear it.
"""

from collections.abc import Callable, Mapping
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WIDTH = 360


class Drawing:
    """A figure, to which shapes are added from back to front.

    Args:
        title: what the figure is of.
        description: what it shows, for those who don't see it.
    """

    def __init__(self, title: str, description: str) -> None:
        self._title, self._description = title, description
        self._shapes: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, text: str = ""
    ) -> None:
        """Add a rectangle of a kind (a class of ``site.css``), with a text in its middle."""
        self._shapes.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" '
            f'width="{width:g}" height="{height:g}" rx="2"/>'
        )
        if text:
            self.text(x + width / 2, y + height / 2 + 4, text, f"middle on-{kind}")

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Add a text. Its kind may be ``middle``, ``end``, ``small``, ``strong``, or several."""
        self._shapes.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def line(self, points: list[tuple[float, float]], kind: str = "arrow") -> None:
        """Add a line through points: an ``arrow`` or a ``rule``."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#drawing-arrow)"' if kind == "arrow" else ""
        self._shapes.append(f'<polyline class="{kind}" points="{path}"{end}/>')

    def svg(self, name: str, height: float) -> str:
        """Return the figure as a part of a page."""
        return (
            f'<figure class="drawing"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-labelledby="{name}-title {name}-description">'
            f'<title id="{name}-title">{escape(self._title)}</title>'
            f'<desc id="{name}-description">{escape(self._description)}</desc>'
            '<defs><marker id="drawing-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker></defs>'
            f"{''.join(self._shapes)}</svg></figure>"
        )


def ragged_mask() -> tuple[Drawing, float]:
    """Draw which keys the tokens of a batch of three requests attend to."""
    drawing = Drawing(
        "The mask of a ragged batch",
        "Three requests in one step. A has one new token, which attends to all six keys of A. B "
        "has a chunk of three tokens, which attend to 3, 4 and 5 keys of B. C has a prompt of "
        "four tokens, which attend to 1, 2, 3 and 4 keys of C. No token attends to keys of "
        "another request.",
    )
    size, left, top = 19, 70, 42
    row, column = 0, 0
    for name, cached, new in (("A", 5, 1), ("B", 2, 3), ("C", 0, 4)):
        keys = cached + new
        x = left + column * size
        drawing.text(x + keys * size / 2, 16, f"keys of {name}", "middle small strong")
        drawing.text(x + keys * size / 2, 30, f"{cached} cached", "middle small")
        for query in range(new):
            y = top + (row + query) * size
            drawing.text(left - 6, y + 14, f"{name}, token {cached + query}", "end small")
            for key in range(keys):
                kind = "one" if key <= cached + query else "empty"
                drawing.box(x + key * size, y, size - 2, size - 2, kind)
        row, column = row + new, column + keys
    y = top + row * size + 8
    for x, kind, text in (
        (left, "one", "attends to"),
        (left + 100, "empty", "comes later, hidden"),
    ):
        drawing.box(x, y, size - 2, size - 2, kind)
        drawing.text(x + 22, y + 13, text, "small")
    return drawing, y + 24


def block_table() -> tuple[Drawing, float]:
    """Draw how a block table leads from the tokens of a request to blocks of the pool."""
    drawing = Drawing(
        "A block table",
        "A has 15 tokens, in blocks of four slots. Its block table is 0, 1, 2, 5: tokens 0 to 3 "
        "are in block 0 of the pool, and so on, and 12 to 14 in block 5. Blocks 3, 4 and 6 are "
        "B's, 7 is C's. Token 14 is the third one of A's fourth block, and so in slot 5 times 4 "
        "plus 2, which is 22.",
    )
    drawing.text(4, 16, "A's text: 15 tokens", "strong")
    for token in range(16):
        last = "two" if token == 14 else "one"
        drawing.box(4 + token * 22, 24, 20, 22, last if token < 15 else "empty")
        if token < 15:
            drawing.text(14 + token * 22, 39, str(token), f"middle small on-{last}")
    drawing.text(140, 66, "A's table", "strong")
    for index, block in enumerate((0, 1, 2, 5)):
        middle = 47 + index * 88
        drawing.line([(middle, 48), (middle, 74)])
        drawing.box(middle - 16, 76, 32, 24, "two" if block == 5 else "one", str(block))
        drawing.line([(middle, 102), (4 + block * 44 + 20, 134)])
    for block, owner in enumerate("AAABBABC"):
        kind = "empty" if owner != "A" else "two" if block == 5 else "one"
        drawing.box(4 + block * 44, 136, 42, 26, kind, f"{block} {owner}")
    drawing.text(4, 178, "the pool: blocks of 4 slots", "strong")
    drawing.text(356, 178, "token 14: slot 5 · 4 + 2", "small end on-page-two")
    return drawing, 186


def step_timeline() -> tuple[Drawing, float]:
    """Draw CPU and GPU: one after the other, with a graph, and ahead."""
    drawing = Drawing(
        "Three steps on CPU and GPU",
        "One after the other: the CPU plans a step and launches its kernels one by one, the GPU "
        "computes, and the CPU plans the next step only then. With a recorded graph, the "
        "launches of a step are one command, and a step is shorter. Planning ahead, the CPU "
        "plans the next step while the GPU computes this one, and the GPU never waits.",
    )
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
    return drawing, 264


def _lanes(drawing: Drawing, y: float) -> None:
    for offset, name in ((15, "CPU"), (41, "GPU")):
        drawing.text(4, y + offset, name, "small")
        drawing.line([(34, y + offset + 8), (356, y + offset + 8)], "rule")


def online_softmax() -> tuple[Drawing, float]:
    """Draw the running softmax over three tiles of scores, with its numbers."""
    tiles = ((1, 3, 2), (5, 4, 1), (2, 0, 3))
    peak, total = float("-inf"), 0.0
    drawing = Drawing(
        "The online softmax, tile by tile",
        "Scores in three tiles: 1, 3, 2; then 5, 4, 1; then 2, 0, 3. After the first, the peak "
        "is 3 and the total 1.75. In the second the peak rises to 5, so the total is first "
        "multiplied by 1/4. In the third the peak stays, and nothing has to be scaled.",
    )
    drawing.text(4, 14, "scores", "strong")
    for index, scores in enumerate(tiles):
        x = 64 + index * 100
        for key, score in enumerate(scores):
            drawing.box(x + key * 26, 104 - score * 16, 22, score * 16 + 2, "one")
            drawing.text(x + key * 26 + 11, 100 - score * 16, str(score), "middle small")
        new = max(peak, *scores)
        fade = 2 ** (peak - new)
        total = total * fade + sum(2.0 ** (score - new) for score in scores)
        drawing.line([(x - 4, 104 - new * 16), (x + 82, 104 - new * 16)], "peak")
        for y, text in ((130, f"{new:g}"), (150, f"{fade:g}"), (170, f"{total:.3f}")):
            drawing.text(x + 38, y, text, "middle")
        peak = new
    for y, name in ((130, "peak"), (150, "fade"), (170, "total")):
        drawing.text(4, y, name, "strong")
    drawing.text(4, 192, "fade = 2^(old peak - new peak); acc fades alike", "small")
    return drawing, 200


def kernel_tiles() -> tuple[Drawing, float]:
    """Draw what one program of an attention kernel reads and keeps."""
    drawing = Drawing(
        "One program of an attention kernel",
        "A tile of queries stays in registers. The program walks over tiles of keys and values, "
        "which it finds through the block table. Each tile updates peak, total and acc, which "
        "stay in registers too. Only at the end is a result written.",
    )
    drawing.text(4, 14, "memory: keys and values, found by the block table", "strong")
    for tile in range(5):
        kind = "two" if tile == 2 else "empty"
        drawing.box(8 + tile * 70, 24, 64, 34, kind, f"tile {tile}")
    drawing.line([(180, 60), (180, 92)])
    drawing.line([(190, 72), (330, 72)])
    drawing.text(196, 88, "next tile", "small")
    drawing.box(4, 94, 352, 112, "frame")
    drawing.text(12, 112, "registers of one program", "strong")
    drawing.box(14, 122, 84, 60, "one", "queries")
    drawing.text(108, 156, "·", "middle")
    drawing.box(118, 122, 84, 60, "two", "keys")
    drawing.line([(206, 152), (226, 152)])
    for y, name in ((122, "peak"), (143, "total"), (164, "acc")):
        drawing.box(230, y, 116, 18, "three", name)
    drawing.text(14, 198, "read once", "small")
    drawing.text(230, 198, "updated by each tile", "small")
    drawing.line([(288, 208), (288, 234)])
    drawing.text(278, 232, "acc / total, written once", "end small")
    return drawing, 242


def chunked_timeline() -> tuple[Drawing, float]:
    """Draw when a decoding request gets its tokens, beside a long prompt."""
    drawing = Drawing(
        "A long prompt, whole and in chunks",
        "A decodes, and B comes with a long prompt. Whole: one long step, in which A gets no "
        "token. In chunks: several shorter steps; A gets a token in each, and B's first token "
        "comes a little later.",
    )
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
    return drawing, 192


def engine() -> tuple[Drawing, float]:
    """Draw the whole engine on one sheet."""
    drawing = Drawing(
        "The engine on one sheet",
        "A request is checked and waits. In each step the scheduler takes blocks from the pool "
        "and makes a plan; the plan becomes a batch of arrays; the model computes it, reading "
        "and writing the KV cache; the sampler draws tokens; they are appended to their "
        "requests, and become text. Requests that are not done are in the next step too.",
    )
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
    drawing.text(-14, 222, "each step", "small turned")
    return drawing, 392


def transformer() -> tuple[Drawing, float]:
    """Draw the layers of a transformer, and what a layer does."""
    drawing = Drawing(
        "A transformer",
        "Tokens become vectors. In each of six layers, attention adds what a token finds in "
        "earlier tokens, and the MLP adds what it makes of that by itself. The last token's "
        "vector is compared with all tokens of the vocabulary: these are the logits.",
    )
    for index, token in enumerate(("The", "old", "captain")):
        x = 60 + index * 90
        drawing.box(x, 8, 76, 24, "frame", token)
        drawing.line([(x + 38, 33), (x + 38, 58)])
        drawing.box(x, 60, 76, 24, "two", "vector")
        drawing.line([(x + 38, 85), (x + 38, 116)])
        drawing.box(x, 118, 76, 28, "one", "attention")
        drawing.line([(x + 38, 147), (x + 38, 172)])
        drawing.box(x, 174, 76, 28, "three", "MLP")
        if index:
            drawing.line([(x - 14, 132), (x - 2, 132)])
    drawing.box(48, 104, 276, 110, "frame-only")
    drawing.text(268, 228, "6 layers", "end small strong")
    drawing.line([(278, 203), (278, 246)])
    drawing.box(180, 248, 176, 26, "two", "logits: 4,096 numbers")
    drawing.line([(178, 261), (126, 261)])
    drawing.box(48, 248, 76, 26, "frame", "looked")
    drawing.text(4, 136, "looks", "small")
    drawing.text(4, 148, "back", "small")
    drawing.text(4, 192, "thinks", "small")
    return drawing, 284


DRAWINGS: Mapping[str, Callable[[], tuple[Drawing, float]]] = {
    "ragged-mask": ragged_mask,
    "block-table": block_table,
    "step-timeline": step_timeline,
    "online-softmax": online_softmax,
    "kernel-tiles": kernel_tiles,
    "chunked-timeline": chunked_timeline,
    "engine": engine,
    "transformer": transformer,
}


class DrawingDirective(SphinxDirective):
    """``{drawing} name``: one of the figures."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        name = self.arguments[0]
        if name not in DRAWINGS:
            raise self.error(f"there is no drawing {name}; there are {', '.join(DRAWINGS)}")
        self.env.note_dependency(__file__)
        drawing, height = DRAWINGS[name]()
        return [nodes.raw("", drawing.svg(f"drawing-{name}", height), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; Sphinx calls this."""
    app.add_directive("drawing", DrawingDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
