"""Random requests for demonstrations: a shared prefix, followed by a passage of an old novel."""

from importlib import resources
from random import Random
from typing import NamedTuple

from minimal_vllm_lab.view.traffic_settings import TrafficSettings


class DemoRequest(NamedTuple):
    """A prompt, the length of its answer, and the passage that the prompt ends in."""

    prompt: list[int]
    """Token ids."""
    num_output: int
    """Number of tokens to generate."""
    passage: list[int]
    """Token ids of the passage, which is read again from its beginning if it is too short."""
    num_read: int
    """Number of the passage's tokens that the prompt has read."""


class DemoRequests:
    """Makes random requests, the same ones for the same seed.

    Args:
        passages: passages as token ids; the first one is the shared prefix.
        max_len: maximum number of tokens in a request, prompt and output together.
        seed: seed of all random numbers.
    """

    def __init__(self, passages: list[list[int]], max_len: int, seed: int) -> None:
        self._shared, *self._others = passages
        self._max_len = max_len
        self._random = Random(seed)

    def count(self, settings: TrafficSettings) -> int:
        """Return the number of requests that arrive with the next step."""
        mean = settings.requests_per_100_steps / 100
        return int(mean) + (self._random.random() < mean % 1)

    def make(self, settings: TrafficSettings) -> DemoRequest:
        """Return a request. Prompt and output are cut if they exceed the maximum length."""
        num_output = min(self._around(settings.output_tokens), self._max_len - 1)
        num_prompt = min(self._around(settings.prompt_tokens), self._max_len - num_output)
        num_shared = min(settings.shared_prefix_tokens, num_prompt - 1)
        passage = self._random.choice(self._others)
        num_read = num_prompt - num_shared
        prompt = _cut(self._shared, num_shared) + _cut(passage, num_read)
        return DemoRequest(prompt, num_output, passage, num_read)

    def _around(self, mean: int) -> int:
        return self._random.randint((mean + 1) // 2, max(1, 3 * mean // 2))


def read_passages() -> list[str]:
    """Return all passages; the first one is the shared prefix."""
    text = resources.files(__package__).joinpath("passages.txt").read_text(encoding="utf-8")
    return [" ".join(passage.split()) for passage in text.split("\n\n")]


def _cut(tokens: list[int], length: int) -> list[int]:
    """Return ``length`` tokens, by repeating the tokens if there are too few."""
    return (tokens * (length // len(tokens) + 1))[:length]
