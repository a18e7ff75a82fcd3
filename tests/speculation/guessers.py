"""Guessers for tests, by their place: ``tests.speculation.guessers:Knowing``."""

from array import array
from typing import ClassVar


class Knowing:
    """Knows the outputs, and makes a mistake at each third token."""

    outputs: ClassVar[dict] = {}
    """Prompt, as a tuple -> outputs that the engine gives without guesses."""

    def propose(self, entries, counts):
        pairs = zip(entries, counts, strict=True)
        return [self._guess(entry.request, count) for entry, count in pairs]

    def _guess(self, request, count):
        prompt = tuple(request.token_ids[: request.num_prompt_tokens])
        done = request.token_ids[request.num_prompt_tokens :].tolist()
        for output in self.outputs.get(prompt, ()):
            if output[: len(done)] == done:
                first = len(done)
                following = output[first : first + count]
                return [
                    token if (first + i) % 3 else (token + 1) % 100
                    for i, token in enumerate(following)
                ]
        return []

    def forget(self, request):
        pass


class Broken:
    """Fails in another way each time."""

    def __init__(self):
        self.step = 0

    def propose(self, entries, counts):
        self.step += 1
        match self.step % 5:
            case 0:
                raise RuntimeError("no idea")
            case 1:
                return []
            case 2:
                return [[-5] * count for count in counts]
            case 3:
                return [array("i", [0, 10**9] * (count + 50)) for count in counts]
            case _:
                return [["one"] for _ in entries]

    def forget(self, request):
        raise RuntimeError("who?")
