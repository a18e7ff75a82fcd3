"""The check of stream-text: after each token, what was given out is what is certain."""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from minimal_vllm.sampling_params import SamplingParams
from minimal_vllm_lab.check.lesson import Broken, Lesson, Rule
from minimal_vllm_lab.check.search import History, find_lesson

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

CHAPTER = "13-serving"
CERTAIN = Rule(
    "What may become a stop string is held back.",
    "The client has seen what was sent: it can't be taken back when the stop string is complete.",
    CHAPTER,
)
AT_ONCE = Rule(
    "What can't become a stop string is given out at once.",
    "The client waits for it: the latency of each token is what one sees of an engine.",
    CHAPTER,
)
ENDS = Rule(
    "The stop string that is complete first ends the text; of several at once, the longest.",
    "Whatever is computed afterwards is of no use to anybody.",
    CHAPTER,
)
CUT = Rule(
    "The text ends before the stop string, or behind it if it is to be included.",
    "Programs parse what they get, and rely on what comes last.",
    CHAPTER,
)
TOKENS = (b"E", b"N", b"D", b"EN", b"x", b"DEx", b"\xc3", b"\xa9")  # the last two together: é
STOPS = ("END", "EN", "xE", "NN", "éE")
Case = tuple[list[int], list[str], bool, int]
"""Tokens, stop strings, whether these are included, and the fewest tokens before one counts."""


class _Bytes:
    """A tokenizer whose tokens are some bytes."""

    special_token_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return TOKENS[token_id]

    first_token_bytes = token_bytes


def check_stream(module: ModuleType) -> Lesson | None:
    """Hold ``MyDetokenizer`` to what is certain after each token."""

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
                _check_going_on(mine.text, stop, _characters(text), stops)
            else:
                _check_ended(mine.text, stop, _characters(text), end, included)
                return
        mine.finish()
        history.note(f"finish(): given out {mine.text!r}")
        whole = b"".join(TOKENS[each] for each in token_ids).decode(errors="replace")
        if mine.text != whole:
            raise Broken(AT_ONCE, f"{mine.text!r}", f"{whole!r}: it is over, and all is certain")

    return find_lesson(_cases(), run, examples=400)


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
    """The text without half a character at its end; one in the middle is replaced."""
    whole = text[:-1] if text.endswith(b"\xc3") else text
    return whole.decode(errors="replace")


def _first_end(text: str, num_old: int, stops: list[str]) -> tuple[int, str] | None:
    """Where the first stop string ends that ends in the new part of the text, and which it is."""
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


def _check_going_on(given: str, stop: str | None, text: str, stops: list[str]) -> None:
    if stop is not None:
        raise Broken(ENDS, f"it ended with {stop!r}", "it goes on: none counts yet, or is complete")
    begun = [
        length
        for length in range(len(text) + 1)
        if any(s.startswith(text[len(text) - length :]) and len(s) > length for s in stops)
    ]
    certain = text[: len(text) - max(begun)]
    if len(given) > len(certain):
        raise Broken(CERTAIN, f"{given!r} was given out", f"{certain!r}")
    if given != certain:
        raise Broken(AT_ONCE, f"{given!r} was given out", f"{certain!r}")


def _check_ended(
    given: str, stop: str | None, text: str, end: tuple[int, str], included: bool
) -> None:
    place, expected = end
    if stop != expected:
        raise Broken(ENDS, f"{stop!r}" if stop else "it goes on", f"it ends with {expected!r}")
    whole = text[:place] if included else text[: place - len(expected)]
    if given != whole:
        raise Broken(CUT, f"{given!r} was given out", f"{whole!r}")
