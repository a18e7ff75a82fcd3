"""Modules of learners who made a mistake: a solution in which some text is replaced."""

from types import ModuleType

from minimal_vllm.plugin import load_file
from tests.lab.learn.solutions import solution


def module_with(exercise, *replaced, folder=None):
    """Return an exercise's solution in which each ``old`` text is replaced by a ``new`` one.

    Args:
        exercise: name of the exercise.
        *replaced: pairs of an old and a new text.
        folder: folder to write the module to, for code that must be in a file, such as Triton's.
    """
    text = solution(exercise)
    for old, new in replaced:
        assert old in text, old
        text = text.replace(old, new)
    if folder is not None:
        path = folder / f"{exercise.replace('-', '_')}.py"
        path.write_text(text)
        return load_file(path)
    module = ModuleType("mine")
    exec(text, vars(module))
    return module
