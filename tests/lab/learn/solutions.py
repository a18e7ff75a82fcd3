"""Solutions of the exercises: the starters, completed with the engine's own code."""

import ast
import inspect
from importlib import import_module
from operator import attrgetter
from textwrap import dedent, indent

from minimal_vllm_lab.learn.exercises import EXERCISES

OUR_OWN = {
    "order_key": """
        def order_key(request):
            # Each 1,000 prompt tokens let one more request overtake this one.
            return request.arrival + request.num_prompt_tokens // 1000, request.arrival
    """,
    "mlp": """
        def mlp(x, gate, up, down, bias, ranks):
            return ranks.add((silu(x @ gate.T) * (x @ up.T)) @ down.T) + bias
    """,
}
"""Solutions that the engine does not contain."""


def solution(name):
    exercise = EXERCISES[name]
    text, names = exercise.starter, {}
    for name, path in exercise.solutions.items():
        source, used = _engine_code(path) if path else (dedent(OUR_OWN[name]).strip(), {})
        text = _replace(text, name, source)
        names |= used
    missing = {used: module for used, module in names.items() if used not in _defined(text)}
    imports = [f"from {module} import {used}" for used, module in sorted(missing.items())]
    docstring = ast.parse(text).body[0]
    lines = text.splitlines()
    return "\n".join([*lines[: docstring.end_lineno], *imports, *lines[docstring.end_lineno :]])


def _engine_code(path):
    """The source of ``module:name``, and the global names that it uses, with their modules."""
    module, _, name = path.partition(":")
    module = import_module(module)
    found = attrgetter(name)(module)
    found = getattr(found, "fget", None) or getattr(found, "fn", None) or found
    source = dedent(inspect.getsource(found))
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    return source, dict.fromkeys(used & vars(module).keys(), module.__name__)


def _replace(text, path, source):
    """Replace ``Class.method`` or ``function`` in a text by another function."""
    body, node = ast.parse(text).body, None
    for name in path.split("."):
        node = next(each for each in body if getattr(each, "name", None) == name)
        body = node.body
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
    new = ast.parse(source).body[0].name
    source = source.replace(f"def {new}(", f"def {path.rpartition('.')[2]}(", 1)
    lines = text.splitlines()
    new_lines = indent(source, " " * node.col_offset).splitlines()
    return "\n".join([*lines[:first], *new_lines, *lines[node.end_lineno :]]) + "\n"


def _defined(text):
    return {
        name
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.Import | ast.ImportFrom)
            else [getattr(node, "name", None)]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [node.id]
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else []
        )
    }
