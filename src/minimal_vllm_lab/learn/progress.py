"""The learner's progress, stored in a file beside the exercises."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from minimal_vllm_lab.learn.exercises import Exercise

FILE_NAME = ".minimal-vllm-learn.json"


@dataclass(frozen=True)
class Progress:
    """The progress in one folder.

    A passed check is stored with the hash of the file that passed, so a file that was changed
    afterward has to be checked again.
    """

    folder: Path

    def state(self, exercise: Exercise) -> str:
        """Return ``not started``, ``started``, ``solved`` or ``changed since it was solved``.

        Raises:
            ValueError: the progress file is not valid JSON.
        """
        path = self.folder / exercise.file_name
        if not path.is_file():
            return "not started"
        passed = self._read().get(exercise.name)
        if passed is None:
            return "started"
        return "solved" if passed == _fingerprint(path) else "changed since it was solved"

    def note_solved(self, exercise: Exercise) -> None:
        """Record that the file in this folder passed its check.

        Raises:
            ValueError: the progress file is not valid JSON.
        """
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
                f"{path} can't be read: {error}. Delete it, and check again."
            ) from error
        return passed


def _fingerprint(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
