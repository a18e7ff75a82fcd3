"""Which exercises are solved: remembered beside the learner's files."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from minimal_vllm_lab.learn.exercises import Exercise

FILE_NAME = ".minimal-vllm-learn.json"


@dataclass(frozen=True)
class Progress:
    """What is known of the exercises in a folder.

    A check is remembered by the hash of the file that passed: a file that was changed since has to
    be checked again.
    """

    folder: Path

    def state(self, exercise: Exercise) -> str:
        """``not started``, ``started``, ``solved``, or ``changed since it was solved``."""
        path = self.folder / exercise.file_name
        if not path.is_file():
            return "not started"
        passed = self._read().get(exercise.name)
        if passed is None:
            return "started"
        return "solved" if passed == _fingerprint(path) else "changed since it was solved"

    def note_solved(self, exercise: Exercise) -> None:
        """The file in this folder passed its check."""
        passed = {
            **self._read(),
            exercise.name: _fingerprint(self.folder / exercise.file_name),
        }
        text = json.dumps(passed, indent=1) + "\n"
        (self.folder / FILE_NAME).write_text(text, encoding="utf-8")

    def _read(self) -> dict[str, str]:
        path = self.folder / FILE_NAME
        if not path.exists():
            return {}
        try:
            passed: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} can't be read: {error}; delete it, and check again"
            ) from error
        return passed


def _fingerprint(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
