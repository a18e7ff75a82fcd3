"""A table of the best solutions of an exercise that can be solved more or less well."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from minimal_vllm_lab.learn.check_order import Race


@dataclass(frozen=True)
class Entry:
    """One row of a leaderboard."""

    name: str
    p99_ttft_ms: float
    gain: float
    """Part of the tail latency of first come, first served that is saved."""


@dataclass(frozen=True)
class Leaderboard:
    """A file that several learners can share: the best attempt under each name."""

    path: Path

    def add(self, name: str, result: Race) -> list[Entry]:
        """Add a result, unless the file has a better one of that name, and return all rows.

        Raises:
            ValueError: the file is not a leaderboard.
        """
        new = Entry(name, round(result.mine, 1), round(result.gain, 4))
        rows = {entry.name: entry for entry in self._read()}
        if name not in rows or new.p99_ttft_ms < rows[name].p99_ttft_ms:
            rows[name] = new
        ranked = sorted(rows.values(), key=lambda entry: entry.p99_ttft_ms)
        text = json.dumps([asdict(entry) for entry in ranked], indent=1) + "\n"
        self.path.write_text(text, encoding="utf-8")
        return ranked

    def _read(self) -> list[Entry]:
        if not self.path.exists():
            return []
        try:
            return [Entry(**row) for row in json.loads(self.path.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.path} is not a leaderboard: {error}. Name another file, or delete it."
            ) from error
