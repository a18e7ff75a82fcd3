"""Loading of classes that replace a part of the engine.

The scheduler, the block pool, the eviction strategy, attention and the sampler can each be replaced
by a class that has the methods of the built-in one.
"""

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

Part = type | str
"""A class, or its location: ``my_file.py:MyClass`` or ``package.module:MyClass``."""

T = TypeVar("T")

OPERATORS = ("__call__", "__contains__", "__len__")


def load_class(part: Part, interface: type[T]) -> type[T]:
    """Return the class that ``part`` is or names.

    A file is run again on each call, as a module named after the file, unless it has already been
    imported. It can't import files next to it, because ``sys.path`` is not changed.

    Args:
        part: a class or its location.
        interface: class whose public methods the class must have, with the same arguments. The
            class need not be derived from it.

    Raises:
        ValueError: there is no such file, module or class, or the class lacks a method; the message
            says which.
    """
    found = _find(part) if isinstance(part, str) else part
    complaints = "; ".join(_complaints(found, interface))
    if complaints:
        name = part_name(part)
        raise ValueError(f"{name} can't take the place of {interface.__name__}: {complaints}")
    return found


def make_part(part: Part, interface: type[T], *arguments: Any) -> T:
    """Create an object of the class that ``part`` is or names.

    Args:
        part: a class or its location.
        interface: as in ``load_class``.
        *arguments: arguments of the class.

    Raises:
        ValueError: as in ``load_class``, or the class does not take these arguments.
    """
    found = load_class(part, interface)
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        kinds = ", ".join(type(argument).__name__ for argument in arguments)
        raise ValueError(f"{part_name(part)} must take ({kinds}): {error}") from error
    return found(*arguments)


def part_name(part: Part) -> str:
    """Return the location of a part, in the form that ``Part`` has."""
    return part if isinstance(part, str) else f"{part.__module__}:{part.__qualname__}"


def _find(spec: str) -> type:
    location, _, name = spec.rpartition(":")
    if not location or not name:
        raise ValueError(f"{spec!r} is not a class: write my_file.py:MyClass or module:MyClass")
    module = (
        load_file(Path(location).expanduser()) if location.endswith(".py") else _import(location)
    )
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [
            each.__name__ for each in vars(module).values() if _is_class_of(each, module.__name__)
        ]
        raise ValueError(f"{location} has no class {name}; it has {', '.join(own) or 'none'}")
    return found


def _is_class_of(value: object, module: str) -> bool:
    return isinstance(value, type) and value.__module__ == module


class _PartLoader(SourceFileLoader):
    """Loader that marks the modules loaded here, which may be loaded again."""


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module, and return the module.

    Raises:
        ValueError: there is no such file, it raises an error, or its name is that of another
            module.
    """
    name = path.stem
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    loaded = sys.modules.get(name)
    if loaded and not isinstance(getattr(loaded, "__loader__", None), _PartLoader):
        if Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
            return loaded
        raise ValueError(f"{path} can't be loaded: another module is named {name}; rename the file")
    spec = spec_from_file_location(name, path, loader=_PartLoader(name, str(path)))
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - a loader is given
    sys.modules[name] = module = module_from_spec(spec)  # dataclasses look for it there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} can't be loaded: {type(error).__name__}: {error}") from error
    return module


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} can't be imported: {error}") from error


def _complaints(found: type, interface: type) -> Iterator[str]:
    missing: frozenset[str] = getattr(found, "__abstractmethods__", frozenset())
    for name, wanted in _methods(interface).items():
        own = next((vars(each)[name] for each in found.__mro__ if name in vars(each)), None)
        if own is None or name in missing:
            yield f"it lacks {_described(name, wanted)}"
        elif not _takes_arguments_of(own, wanted):
            yield f"its {_described(name, own)} should be {_described(name, wanted)}"


def _methods(interface: type) -> dict[str, Any]:
    """Return the public methods and properties that an interface itself defines."""
    return {
        name: value
        for name, value in vars(interface).items()
        if isinstance(value, FunctionType | property)
        and (name in OPERATORS or not name.startswith("_"))
    }


def _described(name: str, method: Any) -> str:
    """Return a method's name and arguments, without types, which are not checked."""
    if not isinstance(method, FunctionType):
        return name
    parameters = inspect.signature(method).parameters.values()
    return (
        f"{name}{inspect.Signature([each.replace(annotation=each.empty) for each in parameters])}"
    )


def _takes_arguments_of(own: Any, wanted: Any) -> bool:
    if not (isinstance(own, FunctionType) and isinstance(wanted, FunctionType)):
        return True
    kinds = inspect.Parameter
    parameters = inspect.signature(wanted).parameters.values()
    positional = [each.name for each in parameters if each.kind is not kinds.KEYWORD_ONLY]
    named = {each.name: None for each in parameters if each.kind is kinds.KEYWORD_ONLY}
    try:
        inspect.signature(own).bind(*positional, **named)
    except TypeError:
        return False
    return True
