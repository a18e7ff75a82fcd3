"""Figures of the KV cache: slots, blocks, tables, and who holds them."""

from .drawing import Drawing, figure


@figure(
    "A block table",
    "A has 15 tokens, in blocks of four slots. Its block table is 0, 1, 2, 5: tokens 0 to 3 "
    "are in block 0 of the pool, and so on, and 12 to 14 in block 5. Blocks 3, 4 and 6 are "
    "B's, 7 is C's. Token 14 is the third one of A's fourth block, and so in slot 5 times 4 "
    "plus 2, which is 22.",
)
def block_table(drawing: Drawing) -> float:
    """Draw how a block table leads from the tokens of a request to blocks of the pool."""
    drawing.text(4, 16, "A's text: 15 tokens", "strong")
    for token in range(16):
        last = "two" if token == 14 else "one"
        drawing.box(4 + token * 22, 24, 20, 22, last if token < 15 else "empty")
        if token < 15:
            drawing.text(14 + token * 22, 39, str(token), f"middle small on-{last}")
    drawing.text(152, 66, "A's table", "strong")
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
    return 186


@figure(
    "What the KV cache stores",
    "In the first step nine tokens come in. Each layer computes their queries, keys and values, "
    "and the keys and values go to places 0 to 8 of the cache. The query of the last token, "
    "“and”, reads places 0 to 8, and the next token is “then”. In the second step only “then” "
    "comes in. Its key and value go to place 9, and its query reads places 0 to 9.",
)
def kv_cache(drawing: Drawing) -> float:
    """Draw two steps, and which places of the cache they write and read."""
    words = ("The", "old", "captain", "looked", "at", "the", "sea", ",", "and", "then")
    widths = (26, 25, 47, 44, 20, 25, 28, 18, 29, 33)
    places = []
    x = 4.0
    for place, width in enumerate(widths):
        x += 24 if place == 9 else 0
        places.append((x, width))
        x += width + 2
    drawing.text(4, 12, "step 1: nine tokens come in", "strong")
    drawing.text(356, 12, "step 2: one", "strong end")
    for place, (word, (left, width)) in enumerate(zip(words, places, strict=True)):
        kind = "two" if place == 9 else "one"
        drawing.box(left, 20, width, 22, f"pale-{kind}")
        drawing.text(left + width / 2, 35, word, "middle small")
        drawing.line([(left + width / 2, 43), (left + width / 2, 58)])
        drawing.line([(left + width / 2, 85), (left + width / 2, 106)])
        drawing.box(left, 108, width, 24, kind, str(place))
    last, (new, width) = places[8][0] + places[8][1], places[9]
    drawing.box(4, 60, last - 4, 24, "frame", "each layer: q, k and v of these tokens")
    drawing.box(new, 60, width, 24, "frame", "q k v")
    drawing.text(4, 148, "KV cache of a layer: a key and a value in each place", "small strong")
    drawing.span(4, last, 168, "the query of “and” reads 0 to 8: next comes “then”")
    drawing.span(4, new + width, 202, "the query of “then” reads 0 to 9: next comes “he”")
    return 222


@figure(
    "What the KV cache saves",
    "A prompt of four tokens and five new ones, a row for each step. Without a cache the rows "
    "compute 4, 5, 6, 7 and 8 tokens, 30 in all: a growing triangle. With a cache they compute 4, "
    "1, 1, 1 and 1 tokens, 8 in all, and read the keys and values of all earlier ones.",
)
def cache_saves(drawing: Drawing) -> float:
    """Draw how many tokens each step computes, without a cache and with it."""
    prompt, new, size = 4, 5, 17
    for left, title, is_cached in ((40, "without a cache", False), (218, "with a cache", True)):
        drawing.text(left, 14, title, "strong")
        total = 0
        for step in range(new):
            length = prompt + step
            read = length - 1 if is_cached and step else 0
            kinds = ["pale-one"] * read + ["two"] * (length - read)
            drawing.cells(left, 24 + step * size, size, [""] * length, kinds)
            total += length - read
        drawing.text(left, 126, f"{total} tokens computed", "small on-page-two")
    for step in range(new):
        drawing.text(4, 36 + step * size, f"step {step + 1}", "small")
    drawing.legend(138, ((40, "two", "computed in this step"), (218, "pale-one", "read")))
    return 156


@figure(
    "Fragmentation, and blocks",
    "32 slots of memory. One piece for each request: A gets 16 slots, of which 6 hold tokens, 5 "
    "are reserved for later and 5 will never be needed. B gets 12, of which 3 hold tokens, 4 are "
    "reserved and 5 will never be needed. The 4 slots that are left are too few for C. In blocks "
    "of 4: A has two blocks, B one, C three, wherever one was free, and two blocks are free. Only "
    "the last block of each request has unused slots.",
)
def fragmentation(drawing: Drawing) -> float:
    """Draw the waste of pieces of memory, and that of blocks."""
    size = 11
    drawing.text(4, 14, "one piece for each request", "strong")
    x = 4.0
    for name, kind, counts in (("A", "one", (6, 5, 5)), ("B", "two", (3, 4, 5))):
        kinds = [kind] * counts[0] + [f"pale-{kind}"] * counts[1] + ["waste"] * counts[2]
        drawing.cells(x, 24, size, [""] * len(kinds), kinds)
        drawing.span(x, x + len(kinds) * size - 4, 46, f"{name}'s piece")
        x += len(kinds) * size
    drawing.cells(x, 24, size, [""] * 4, ["free"] * 4)
    drawing.span(x, x + 4 * size - 4, 46, "no room")
    drawing.text(4, 84, "blocks of 4 slots", "strong")
    blocks = (("A", 4), ("B", 3), ("A", 2), ("C", 4), ("", 0), ("C", 4), ("", 0), ("C", 1))
    colors = {"A": "one", "B": "two", "C": "three", "": "free"}
    for index, (name, used) in enumerate(blocks):
        kinds = [colors[name]] * used
        kinds += ["waste" if name else "free"] * (4 - used)
        drawing.cells(4 + index * 4 * size, 94, size, [""] * 4, kinds)
        drawing.box(2.5 + index * 4 * size, 91, 4 * size - 1.5, 15, "frame-only")
        drawing.text(4 + index * 4 * size + 20, 121, name or "free", "middle small")
    drawing.legend(134, ((4, "one", "holds a token"), (200, "pale-one", "reserved for later")))
    drawing.legend(152, ((4, "waste", "never needed, or not yet"), (200, "free", "free")))
    return 170


@figure(
    "A chain of hashes, and a shared prefix",
    "A's three full blocks have the names 368927, 3bf3d9 and 9b13bd, each a hash of the name "
    "before it and of the block's own 16 tokens. B begins with the same 48 tokens, so its first "
    "three names are the same, and it shares blocks 0, 1 and 2 of the pool. Its fourth block has "
    "a name of its own. The third text is A with another first token: all its names differ, and "
    "it shares nothing.",
)
def hash_chain(drawing: Drawing) -> float:
    """Draw the names of three texts' blocks, and where the pool has these blocks."""
    names = ("368927", "3bf3d9", "9b13bd", "bf6ff6")
    drawing.text(4, 14, "the names of A's full blocks", "strong")
    _chain(drawing, 22, names[:3], ("one",) * 3)
    drawing.text(280, 96, "the pool", "strong")
    for index, block in enumerate((0, 1, 2, 4)):
        x = 22 + index * 86
        kind = "two" if block == 4 else "one"
        drawing.box(x, 104, 70, 28, kind, f"block {block}")
        if block != 4:
            drawing.line([(x + 35, 62), (x + 35, 102)])
        drawing.line([(x + 35, 168), (x + 35, 134)])
    drawing.text(4, 162, "B's", "strong")
    _chain(drawing, 170, names, ("one", "one", "one", "two"))
    drawing.text(4, 236, "A with another first token: nothing is found", "strong")
    _chain(drawing, 244, ("db8b59", "1d094c", "128f8e"), ("three",) * 3)
    drawing.text(4, 302, "name = sha256(name before it + the block's own 16 tokens)", "small")
    return 310


def _chain(drawing: Drawing, y: float, names: tuple[str, ...], kinds: tuple[str, ...]) -> None:
    for index, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        x = 22 + index * 86
        drawing.box(x, y, 70, 38, f"pale-{kind}")
        drawing.text(x + 35, y + 15, name, "middle strong")
        drawing.text(x + 35, y + 31, f"{16 * index}–{16 * index + 15}", "middle small")
        drawing.line([(x - 14, y + 19), (x - 2, y + 19)])


@figure(
    "Blocks that a window has left behind",
    "A request with 80 tokens, in blocks of 16, before it computes token 80. The layers of group "
    "0 see everything, and hold five blocks: 7, 1, 4, 9 and 2. Groups 1 and 2 have a window of "
    "32 tokens. Token 80 is at the start of a block and sees tokens 49 to 80, so these groups "
    "hold only the last two blocks. The first three were released to the pool.",
)
def windows(drawing: Drawing) -> float:
    """Draw which blocks groups of layers hold, with windows and without."""
    rows = (
        ("group 0", "sees all", "one", (7, 1, 4, 9, 2)),
        ("group 1", "window 32", "two", (None, None, None, 5, 8)),
        ("group 2", "window 32", "two", (None, None, None, 3, 6)),
    )
    for index in range(5):
        drawing.text(99 + index * 50, 28, f"{index * 16}–{index * 16 + 15}", "middle small")
    drawing.text(4, 12, "tokens", "strong")
    drawing.text(347, 28, "80", "middle small strong")
    for row, (name, window, kind, blocks) in enumerate(rows):
        y = 38 + row * 40
        drawing.text(4, y + 13, name, "strong")
        drawing.text(4, y + 27, window, "small")
        for index, block in enumerate(blocks):
            own = kind if block is not None else "free"
            drawing.box(76 + index * 50, y, 46, 30, own, "" if block is None else str(block))
            if block is None:
                drawing.text(99 + index * 50, y + 19, "released", "middle tiny")
        drawing.box(330, y, 26, 30, "frame", "next")
    drawing.span(229, 356, 166, "what token 80 sees")
    drawing.text(4, 186, "one pool for all groups", "small")
    return 192
