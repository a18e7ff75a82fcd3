"""Figures of what a step computes, from tokens to logits to a token."""

from itertools import accumulate
from math import exp, frexp
from struct import pack, unpack

from .drawing import Drawing, figure


@figure(
    "A transformer",
    "Tokens become vectors. In each of six layers, attention adds what a token finds in "
    "earlier tokens, and the MLP adds what it makes of that by itself. The last token's "
    "vector is compared with all tokens of the vocabulary: these are the logits.",
)
def transformer(drawing: Drawing) -> float:
    """Draw the layers of a transformer, and what a layer does."""
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
    return 284


@figure(
    "The mask of a ragged batch",
    "Three requests in one step. A has one new token, which attends to all six keys of A. B "
    "has a chunk of three tokens, which attend to 3, 4 and 5 keys of B. C has a prompt of "
    "four tokens, which attend to 1, 2, 3 and 4 keys of C. No token attends to keys of "
    "another request.",
)
def ragged_mask(drawing: Drawing) -> float:
    """Draw which keys the tokens of a batch of three requests attend to."""
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
    return y + 24


@figure(
    "The online softmax, tile by tile",
    "Scores in three tiles: 1, 3, 2; then 5, 4, 1; then 2, 0, 3. After the first, the peak "
    "is 3 and the total 1.75. In the second the peak rises to 5, so the total is first "
    "multiplied by 1/4. In the third the peak stays, and nothing has to be scaled.",
)
def online_softmax(drawing: Drawing) -> float:
    """Draw the running softmax over three tiles of scores, with its numbers."""
    tiles = ((1, 3, 2), (5, 4, 1), (2, 0, 3))
    peak, total = float("-inf"), 0.0
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
    return 200


@figure(
    "One program of an attention kernel",
    "A tile of queries stays in registers. The program walks over tiles of keys and values, "
    "which it finds through the block table. Each tile updates peak, total and acc, which "
    "stay in registers too. Only at the end is a result written.",
)
def kernel_tiles(drawing: Drawing) -> float:
    """Draw what one program of an attention kernel reads and keeps."""
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
    return 242


@figure(
    "A step through the model",
    "Token ids are looked up in the embedding and become a stream of vectors, of h numbers for "
    "each of T tokens. In each of L layers the stream is read twice, and twice a result is added "
    "to it: by norm, qkv_proj, attention with the KV cache and o_proj; and by norm, gate_up_proj, "
    "activation and down_proj. After the last layer, a norm and lm_head turn the vectors of the "
    "tokens that get a successor into V logits each.",
)
def residual_stream(drawing: Drawing) -> float:
    """Draw the way of a step's vectors through the model, with the shapes of its matrices."""
    stream = 60
    drawing.box(4, 4, 112, 24, "frame", "token ids [T]")
    drawing.text(72, 46, "embedding [V, h]: a row for each token", "small")
    drawing.line([(stream, 29), (stream, 288)])
    drawing.box(22, 58, 334, 208, "frame-only")
    parts = (
        ("one", ("norm", "qkv_proj  [h, (H + 2K) D]", "attention", "o_proj  [H D, h]")),
        ("three", ("norm", "gate_up_proj  [h, 2F]", "silu(gate) · up", "down_proj  [F, h]")),
    )
    for top, (kind, names) in zip((68, 168), parts, strict=True):
        drawing.line([(stream, top + 10), (104, top + 10)])
        for index, name in enumerate(names):
            own = kind if name in ("attention", "silu(gate) · up") else f"pale-{kind}"
            drawing.box(106, top + index * 22, 172, 20, own, name)
        drawing.line([(104, top + 76), (stream + 10, top + 76)])
        drawing.box(stream - 8, top + 68, 16, 16, "frame", "+")
    drawing.box(294, 112, 56, 20, "two", "cache")
    drawing.line([(292, 118), (280, 118)])
    drawing.line([(280, 127), (292, 127)])
    drawing.text(322, 106, "KV", "small middle")
    drawing.text(350, 258, "× L layers", "end strong")
    drawing.text(40, 166, "the residual stream: [T, h]", "small turned middle")
    drawing.box(4, 290, 112, 24, "pale-one", "norm")
    drawing.line([(118, 302), (136, 302)])
    drawing.box(138, 290, 110, 24, "pale-one", "lm_head [h, V]")
    drawing.line([(250, 302), (268, 302)])
    drawing.box(270, 290, 86, 24, "two", "logits [·, V]")
    return 320


CANDIDATES = {
    "then": -2.57,
    "said": -2.609,
    "the": -2.657,
    "at": -3.417,
    "saw": -3.545,
    ",": -3.578,
    "thought": -3.627,
    "was": -3.772,
}
"""The likeliest tokens after the course's sentence, with their log-probabilities."""


@figure(
    "From logits to a token",
    "The eight likeliest tokens after “The old captain looked at the sea, and”: then, said, the, "
    "at, saw, comma, thought, was. At a temperature of 1 their probabilities differ little. At "
    "0.5 the first three stand out. top_k 5 leaves five of them, top_p 0.9 four. Their shares are "
    "put one after another on a line from 0 to 1, where a random number u = 0.42 falls on “said”.",
)
def sampling(drawing: Drawing) -> float:
    """Draw the probabilities of the likeliest tokens after each stage of the sampler."""
    warm = [exp(each) for each in CANDIDATES.values()]
    cold = [each**2 for each in warm]
    warm, cold = ([each / sum(row) for each in row] for row in (warm, cold))
    top = [each if index < 5 else 0 for index, each in enumerate(cold)]
    top = [each / sum(top) for each in top]
    kept = sum(total - each < 0.9 for total, each in zip(accumulate(top), top, strict=True))
    nucleus = [each if index < kept else 0 for index, each in enumerate(top)]
    nucleus = [each / sum(nucleus) for each in nucleus]
    stages = (
        ("softmax of the logits", warm, 150.0),
        ("temperature 0.5", cold, 100.0),
        ("top_k 5", top, 100.0),
        ("top_p 0.9", nucleus, 100.0),
    )
    for row, (name, shares, scale) in enumerate(stages):
        floor = 54 + row * 52
        drawing.text(356, floor - 28, name, "small strong end")
        drawing.line([(4, floor), (356, floor)], "rule")
        for index, share in enumerate(shares):
            x = 8 + index * 44
            if share:
                drawing.box(x, floor - share * scale, 36, share * scale, "one")
            else:
                drawing.text(x + 18, floor - 3, "out", "middle tiny")
    for index, word in enumerate(CANDIDATES):
        drawing.text(26 + index * 44, 224, word, "middle small")
    left, u = 8.0, 0.42
    for index, (word, share) in enumerate(zip(CANDIDATES, nucleus, strict=True)):
        if share:
            kind = "two" if word == "said" else "one"
            drawing.box(left, 240, share * 344 - 2, 24, kind, word if index < 3 else "")
            left += share * 344
    drawing.line([(8 + u * 344, 284), (8 + u * 344, 266)])
    drawing.text(8 + u * 344, 296, f"u = {u}: “said”", "middle small strong")
    drawing.text(8, 278, "0", "middle small")
    drawing.text(350, 278, "1", "middle small")
    return 302


@figure(
    "A shared prefix, read once",
    "A, B and C share blocks 7, 2 and 9; A also has blocks 4 and 1, B has 8, C has 3 and 6. The "
    "three queries are multiplied with the shared keys in one product, which reads these once, "
    "and gives each request a result out1. As before, each query is multiplied with the keys of "
    "its own blocks, which gives out2. The two results of each request are merged.",
)
def shared_prefix(drawing: Drawing) -> float:
    """Draw the two parts of attention over shared and own blocks, and their merge."""
    own = {"A": (4, 1), "B": (8,), "C": (3, 6)}
    drawing.text(4, 14, "block tables", "strong")
    for row, (name, blocks) in enumerate(own.items()):
        y = 22 + row * 26
        drawing.text(10, y + 16, name, "strong")
        drawing.cells(28, y, 26, ["7", "2", "9"], ["one"] * 3)
        drawing.cells(112, y, 26, [str(block) for block in blocks], ["two"] * len(blocks))
    drawing.text(182, 40, "shared blocks, read once", "on-page-one small strong")
    drawing.text(182, 66, "own blocks, each by itself", "on-page-two small strong")
    drawing.text(4, 124, "one product for all", "strong")
    drawing.text(214, 124, "one for each", "strong")
    for row, (name, blocks) in enumerate(own.items()):
        y = 132 + row * 26
        drawing.box(4, y, 44, 24, "three", f"q of {name}")
        drawing.box(214, y, 44, 24, "three", f"q of {name}")
        drawing.text(266, y + 16, "·", "middle")
        drawing.cells(274, y, 26, [str(block) for block in blocks], ["two"] * len(blocks))
    drawing.text(56, 174, "·", "middle")
    drawing.box(64, 132, 118, 76, "one", "keys of 7 2 9")
    drawing.line([(92, 210), (92, 232)])
    drawing.line([(272, 210), (272, 232)])
    drawing.box(24, 234, 136, 24, "frame", "out₁, lse₁ of each")
    drawing.box(204, 234, 136, 24, "frame", "out₂, lse₂ of each")
    drawing.line([(92, 259), (92, 276), (124, 276)])
    drawing.line([(272, 259), (272, 276), (238, 276)])
    drawing.box(126, 266, 110, 24, "three", "merge")
    return 296


@figure(
    "A weight in 16, 8 and 4 bits",
    "The weight 0.0437. In bfloat16 it has a sign, eight bits of exponent and seven of fraction, "
    "and is 0.0437 still. In FP8 it is divided by a scale of 0.001, and has a sign, four bits of "
    "exponent and three of fraction: 44 times the scale, 0.044. In 4 bits it is divided by a scale "
    "of 0.01 and rounded to a whole number: 0.04. Below, a group of weights is rounded to 16 "
    "levels from the smallest to the largest of them.",
)
def number_formats(drawing: Drawing) -> float:
    """Draw the bits of one weight in three formats, and a group that shares a scale."""
    weight = 0.0437
    bits = unpack(">I", pack(">f", weight))[0]
    brain = (bits + 0x8000) >> 16  # rounded to the nearest; a tie is of no concern here
    small, scale = _e4m3(weight / 0.001), 0.001
    level = round(weight / 0.01) + 8
    rows = (
        ("bfloat16", f"{brain:016b}", (1, 8, 7), unpack(">f", pack(">I", brain << 16))[0], ""),
        ("FP8 e4m3", f"{small[0]:08b}", (1, 4, 3), small[1] * scale, f"{small[1]:g} · 0.001"),
        ("4 bits", f"{level:04b}", (0, 0, 4), (level - 8) * 0.01, f"({level} − 8) · 0.01"),
    )
    drawing.text(4, 14, f"the weight {weight}", "strong")
    for row, (name, shown, parts, value, formula) in enumerate(rows):
        y = 26 + row * 50
        kinds = [k for k, n in zip(("three", "two", "one"), parts, strict=True) for _ in range(n)]
        drawing.text(4, y + 12, name, "small strong")
        drawing.cells(70, y, 18, list(shown), kinds)
        drawing.text(70, y + 31, f"{formula} = {value:.4g}" if formula else f"{value:.4g}", "small")
    drawing.legend(170, ((4, "three", "sign"), (70, "two", "exponent")))
    drawing.legend(170, ((160, "one", "fraction, or a whole number"),))
    _group(drawing, 206)
    return 368


def _group(drawing: Drawing, top: float) -> None:
    """Draw weights that share a scale, and the levels that they are rounded to."""
    group = (0.031, -0.052, 0.0437, 0.012, -0.02, 0.068, -0.061, 0.004, 0.05, -0.034, 0.023, -0.007)
    highest, lowest = max(group), min(group)
    scale, first, gap = (highest - lowest) / 15, top + 12, 8
    drawing.text(4, top, "a group of weights, 16 levels: scale = range / 15", "strong")
    for level in range(16):
        drawing.line([(70, first + level * gap), (356, first + level * gap)], "faint")
    for index, weight in enumerate(group):
        x, levels = 80 + index * 23, (highest - weight) / scale
        drawing.box(x - 4, first + round(levels) * gap - 4, 8, 8, "pale-one")
        drawing.box(x - 2, first + levels * gap - 2, 4, 4, "two")
    drawing.text(4, first + 4, f"15: {highest}", "small")
    drawing.text(4, first + 15 * gap + 4, f"0: −{-lowest}", "small")
    colors = ((70, "two", "a weight"), (160, "pale-one", "the level it is rounded to"))
    drawing.legend(first + 15 * gap + 14, colors)


def _e4m3(number: float) -> tuple[int, float]:
    """Return the nearest positive normal number with 4 bits of exponent and 3 of fraction."""
    fraction, exponent = frexp(number)  # the fraction is from 0.5 to below 1
    eighths = round(fraction * 16)  # 8 to 16
    value = eighths * 2.0 ** (exponent - 4)
    fraction, exponent = frexp(value)
    return ((exponent - 1 + 7) << 3) | (round(fraction * 16) - 8), value


@figure(
    "Tokens, experts and grouped products",
    "Three tokens choose two of four experts each: token 0 experts 2 and 0, token 1 experts 1 and "
    "2, token 2 experts 3 and 0. Sorted by expert, expert 0 has tokens 0 and 2, expert 1 token 1, "
    "expert 2 tokens 0 and 1, expert 3 token 2. Each group is one product, and each expert's "
    "weights are read once.",
)
def experts(drawing: Drawing) -> float:
    """Draw how pairs of a token and an expert are sorted by expert."""
    chosen = ((2, 0), (1, 2), (3, 0))
    kinds = ("one", "two", "three")
    drawing.text(4, 14, "the router chooses 2 of 4 experts for each token", "strong")
    pairs = sorted((expert, token) for token, row in enumerate(chosen) for expert in row)
    places = {}
    x = 8.0
    for index, (expert, token) in enumerate(pairs):
        x += 14 if index and pairs[index - 1][0] != expert else 0
        places[expert, token] = x
        x += 50
    for token, row in enumerate(chosen):
        start = 38 + token * 120
        drawing.box(start - 22, 24, 88, 24, kinds[token], f"token {token}")
        for index, expert in enumerate(row):
            drawing.line([(start + index * 44, 50), (places[expert, token] + 23, 104)])
    for (expert, token), left in places.items():
        drawing.box(left, 106, 46, 24, kinds[token])
        drawing.text(left + 23, 122, f"token {token}", f"middle small on-{kinds[token]}")
        members = [place for (other, _), place in places.items() if other == expert]
        if left == members[0]:
            width = members[-1] + 46 - left
            drawing.box(left - 2, 104, width + 4, 60, "frame-only")
            drawing.text(left + width / 2, 150, f"expert {expert}", "middle tiny")
    drawing.text(4, 182, "sorted by expert: each group is one product, and each expert's", "small")
    drawing.text(4, 197, "weights are read once, not once for each token", "small")
    return 204


@figure(
    "Three guesses in one step",
    "The list ends with “captain”. The guesses are “looked”, “at” and “her”. One step computes "
    "“captain” and the three guesses. It samples “looked”, which is the first guess, “at”, the "
    "second, and “the”, which is not “her”. So “her” and what was sampled behind it are dropped. "
    "“looked”, “at” and “the” are kept: three tokens of one step.",
)
def guesses(drawing: Drawing) -> float:
    """Draw what is guessed, computed, sampled and kept in a step."""
    columns = (66, 140, 214, 288)
    rows = (
        (22, "guessed", ("", "looked", "at", "her"), ("", "pale-one", "pale-one", "pale-one")),
        (58, "computed", ("captain", "looked", "at", "her"), ("frame", "one", "one", "one")),
        (116, "sampled", ("looked", "at", "the", "sea"), ("three", "three", "two", "waste")),
        (174, "kept", ("", "looked", "at", "the"), ("", "three", "three", "two")),
    )
    drawing.text(66, 14, "the list: … the old captain", "small")
    for y, name, words, kinds in rows:
        drawing.text(4, y + 17, name, "small strong")
        for x, word, kind in zip(columns, words, kinds, strict=True):
            if word:
                drawing.box(x, y, 66, 26, kind, word)
    for x in columns:
        drawing.line([(x + 33, 85), (x + 33, 114)])
    for index in range(3):
        x = columns[index] + 40
        drawing.line([(x, 114), (columns[index + 1] + 20, 86)], "peak")
        drawing.text(x + 44, 106, "≠" if index == 2 else "=", "middle strong")
        drawing.line([(columns[index] + 50, 143), (columns[index + 1] + 20, 172)])
    drawing.text(356, 157, "dropped", "end tiny")
    return 208


@figure(
    "Columns, then rows, then one sum",
    "An MLP in two ranks. Both have all of x. Rank 0 has the upper half of the rows of gate and "
    "up, and so the first half of the channels; rank 1 has the lower half. Each applies the "
    "activation to its own channels, and multiplies them with its half of the columns of down. "
    "Each gets a part of every number of y. One sum over the ranks gives y.",
)
def ranks(drawing: Drawing) -> float:
    """Draw how two ranks divide an MLP, and where they have to talk."""
    for y, rank, kind in ((24, 0, "one"), (116, 1, "two")):
        drawing.text(4, y - 8, f"rank {rank}", f"strong on-page-{kind}")
        drawing.box(4, y, 34, 66, "frame", "x")
        drawing.line([(40, y + 33), (52, y + 33)])
        drawing.box(54, y, 62, 66, "frame-only")
        drawing.box(54, y + rank * 33, 62, 33, kind, "gate up")
        drawing.line([(118, y + 33), (130, y + 33)])
        drawing.box(132, y, 44, 66, "frame-only")
        drawing.box(132, y + rank * 33, 44, 33, f"pale-{kind}", "act")
        drawing.line([(178, y + 33), (190, y + 33)])
        drawing.box(192, y, 62, 66, "frame-only")
        drawing.box(192 + rank * 31, y, 31, 66, kind)
        drawing.text(223, y - 4, "down", "middle small")
        drawing.line([(256, y + 33), (268, y + 33)])
        drawing.box(270, y, 34, 66, f"pale-{kind}", "part")
        drawing.line([(306, y + 33), (330, y + 33), (330, 92 if rank == 0 else 114)])
    drawing.box(308, 92, 46, 22, "three", "sum")
    for x, text in ((85, "some rows"), (154, "channels"), (223, "some columns")):
        drawing.text(x, 196, text, "middle tiny")
    drawing.text(4, 216, "nothing is sent before the sum; then both have all of y", "small")
    return 224
