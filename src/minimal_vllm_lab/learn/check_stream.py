"""Check of the exercise stream-text: the text given out after each token."""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "13-serving"
CERTAIN = Rule(
    "Text that may become part of a stop string is held back.",
    "The client has already seen what was sent. It can't be taken back when the stop string is "
    "complete.",
    CHAPTER,
)
LOST = Rule(
    "No text is lost or repeated: what is held back is given out later, unless it is part of a "
    "stop string.",
    "The client puts the pieces together, and knows nothing of those that are missing.",
    CHAPTER,
)
AT_ONCE = Rule(
    "Text that can't become part of a stop string is given out at once.",
    "The client waits for it. The latency of each token is what users see of an engine.",
    CHAPTER,
)
ENDS = Rule(
    "The text ends at the first complete stop string; if several are complete at once, the "
    "longest.",
    "Tokens that are computed afterward are useless.",
    CHAPTER,
)
CUT = Rule(
    "The text ends before the stop string, or after it if it is to be included.",
    "Programs parse the text, and rely on its end.",
    CHAPTER,
)
TOKENS = (b"E", b"N", b"D", b"EN", b"x", b"DEx", b"\xc3", b"\xa9", b"D\xc3")
"""The texts of the tokens. The bytes C3 A9 form é."""
STOPS = ("END", "EN", "xE", "NN", "éE")
Case = tuple[list[int], list[str], bool, int]
"""Token ids, stop strings, ``include_stop_str_in_output`` and ``min_tokens``."""

KNOWN_CASES: list[Case] = [
    # A stop string is complete before min_tokens, and is held back because a longer one may follow.
    ([0, 1, 4], ["END", "EN"], False, 2),
    # A stop string is complete in the middle of a token, while another one might begin.
    ([3, 4], ["EN", "ENx"], False, 0),
    # A character begins behind the stop string, in the same token.
    ([3, 8], ["END"], False, 0),
    # A complete stop string that may not end the text yet is certain, but for its last character.
    ([1, 1, 4], ["END", "NN"], False, 2),
]


class _Bytes:
    """A tokenizer whose tokens are the byte strings in ``TOKENS``."""

    special_token_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return TOKENS[token_id]

    first_token_bytes = token_bytes


def check_stream(module: ModuleType, seed: int | None = None) -> Lesson | None:
    """Check after each token that ``MyDetokenizer`` gives out exactly the text that is certain.

    Text is certain if it can't become part of a stop string.

    Returns:
        A lesson about a broken rule, or None if all hold.
    """

    def run(case: Case, history: History) -> None:
        token_ids, stops, included, min_tokens = case
        params = SamplingParams(
            stop=stops, include_stop_str_in_output=included, min_tokens=min_tokens
        )
        tokenizer: Any = _Bytes()
        mine = module.MyDetokenizer(tokenizer, params, [])
        options = ", include_stop_str_in_output=True" * included
        options += f", min_tokens={min_tokens}" * bool(min_tokens)
        history.note(f"stop={stops}{options}")
        for count in range(1, len(token_ids) + 1):
            stop = mine.append(token_ids[count - 1 : count])
            history.note(f"token {TOKENS[token_ids[count - 1]]!r}: given out so far {mine.text!r}")
            text = b"".join(TOKENS[each] for each in token_ids[:count])
            before = b"".join(TOKENS[each] for each in token_ids[: count - 1])
            end = _first_end(_characters(text), len(_characters(before)), stops)
            if count <= min_tokens or end is None:
                _check_continues(mine.text, stop, _characters(text), stops)
            else:
                _check_ended(mine.text, stop, _characters(text), end, included)
                mine.finish()
                history.note(f"finish(): given out {mine.text!r}")
                _check_ended(mine.text, stop, _characters(text), end, included)
                return
        mine.finish()
        history.note(f"finish(): given out {mine.text!r}")
        whole = b"".join(TOKENS[each] for each in token_ids).decode(errors="replace")
        if mine.text != whole:
            rule = AT_ONCE if whole.startswith(mine.text) else LOST
            raise Broken(rule, f"{mine.text!r}", f"{whole!r}: the text has ended, so it is certain")

    return find_lesson(_cases(), run, examples=400, seed=seed, known=KNOWN_CASES)


def _cases() -> "SearchStrategy[Case]":
    from hypothesis import strategies as st

    token = st.sampled_from(range(len(TOKENS)))
    return st.tuples(
        st.lists(token, min_size=1, max_size=10),
        st.lists(st.sampled_from(STOPS), min_size=1, max_size=3, unique=True),
        st.sampled_from([False, False, True]),
        st.sampled_from([0, 0, 0, 2]),
    )


def _characters(text: bytes) -> str:
    """Decode a text without an incomplete character at its end, and replace other invalid bytes."""
    whole = text[:-1] if text.endswith(b"\xc3") else text
    return whole.decode(errors="replace")


def _first_end(text: str, num_old: int, stops: list[str]) -> tuple[int, str] | None:
    """Return end and text of the first stop string that ends after ``num_old`` characters."""
    ends = [
        (end, -len(stop), stop)
        for stop in stops
        for end in range(num_old + 1, len(text) + 1)
        if text[:end].endswith(stop)
    ]
    if not ends:
        return None
    end, _, stop = min(ends)
    return end, stop


def _check_continues(given: str, stop: str | None, text: str, stops: list[str]) -> None:
    if stop is not None:
        raise Broken(
            ENDS,
            f"it ends with {stop!r}",
            "it continues: no stop string is complete, or min_tokens is not reached",
        )
    begun = [
        length
        for length in range(len(text) + 1)
        if any(s.startswith(text[len(text) - length :]) and len(s) > length for s in stops)
    ]
    certain = text[: len(text) - max(begun)]
    if not text.startswith(given):
        raise Broken(LOST, f"{given!r} was given out", f"a beginning of {text!r}")
    if len(given) > len(certain):
        raise Broken(CERTAIN, f"{given!r} was given out", f"{certain!r}")
    if given != certain:
        raise Broken(AT_ONCE, f"{given!r} was given out", f"{certain!r}")


def _check_ended(
    given: str, stop: str | None, text: str, end: tuple[int, str], included: bool
) -> None:
    index, expected = end
    if stop != expected:
        found = "it continues: _add returned None" if stop is None else f"{stop!r}"
        raise Broken(ENDS, found, f"it ends with {expected!r}")
    whole = text[:index] if included else text[: index - len(expected)]
    if given != whole:
        raise Broken(CUT, f"{given!r} was given out", f"{whole!r}")
