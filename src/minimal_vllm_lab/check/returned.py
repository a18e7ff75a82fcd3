"""Tell a function that forgets to return its result from one that returns a wrong one."""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any

from minimal_vllm_lab.check.lesson import Broken, Rule

RESULT = Rule(
    "Every function returns its result, on every path.",
    "Without a return statement, Python returns None. Perhaps the word return is missing, or one "
    "branch of an if ends without it.",
)


def results_in(text: str, names: Iterable[str]) -> dict[str, str]:
    """Return the types of results that must not be None, as a source declares them.

    Args:
        text: the source.
        names: functions, and methods as ``Class.method``. Those without a type are left out.
    """
    found: dict[str, str] = {}
    tree = ast.parse(text)
    for name in names:
        node: Any = tree
        for part in name.split("."):
            node = next(each for each in node.body if getattr(each, "name", None) == part)
        if node.returns is not None:
            found[name] = ast.unparse(node.returns)
    return _never_none(found)


def results_of(interface: type) -> dict[str, str]:
    """Return the types of results that must not be None, by a class's methods and properties."""
    found: dict[str, str] = {}
    for name, member in inspect.getmembers(interface):
        function = member.fget if isinstance(member, property) else member
        is_public = not name.startswith("_") or name.endswith("__")
        if inspect.isfunction(function) and is_public and "return" in function.__annotations__:
            kind = inspect.formatannotation(function.__annotations__["return"])
            found[name] = re.sub(r"\b\w+\.|'", "", kind)
    return _never_none(found)


def _never_none(found: Mapping[str, str]) -> dict[str, str]:
    return {name: kind for name, kind in found.items() if "None" not in kind}


@contextmanager
def no_return_forgotten(owner: Any, results: Mapping[str, str]) -> Iterator[None]:
    """Let functions of a module or a class raise ``Broken`` where they return None.

    Args:
        owner: the module or the class. What it has only inherited is left alone.
        results: types of the results, by the names of functions or of ``Class.method``.
    """
    changed: list[tuple[Any, str, Any]] = []
    try:
        for path, kind in results.items():
            holder_name, _, name = path.rpartition(".")
            holder = attrgetter(holder_name)(owner) if holder_name else owner
            original = vars(holder).get(name)
            if (watched := _watched(original, kind)) is not None:
                changed.append((holder, name, original))
                setattr(holder, name, watched)
        yield
    finally:
        for holder, name, original in changed:
            setattr(holder, name, original)


def _watched(original: Any, kind: str) -> Any:
    """Return a function or a property that doesn't return None, or None for anything else."""
    if isinstance(original, property) and isinstance(original.fget, FunctionType):
        return original.getter(_watch(original.fget, kind))
    return _watch(original, kind) if isinstance(original, FunctionType) else None


def _watch(function: FunctionType, kind: str) -> Callable[..., Any]:
    @wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if result is None:
            raise forgotten_return(function, kind)
        return result

    return watched


def forgotten_return(function: FunctionType, kind: str) -> Broken:
    """Return the broken rule of a function that returns None instead of some kind of result."""
    code = function.__code__
    where = f"{Path(code.co_filename).name}, line {code.co_firstlineno}"
    expected = "a result" if kind == "Any" else f"a result: {kind}"
    return Broken(RESULT, f"{function.__name__} returns None ({where})", expected)
