"""Docstrings are understood in a hover box: they open with a verb or with the thing described."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

RIDDLES = re.compile(
    r"""(They|Them|Those|These|It|Its|He|She|His|Her|Their|Theirs|We|You|Your|Ours|One\ by|
    What|Whatever|Who|Whose|Whoever|Whom|Which|Nobody|Somebody|Someone|Everybody|Everyone|Nothing|
    So\ many|How|At\ most|At\ least|As|Than|Same|The\ same|Or|And|But|Only|Be\ it)\b""",
    re.VERBOSE,
)
"""Openings that need the code to be understood."""

THIRD_PERSON = re.compile(r"[A-Z][a-z]*[^s]s (the|a|an|each|every|its|one|whether|no)\b")
"""A verb such as "Returns", told from a plural noun by the word that follows."""


def docstrings(path):
    """The docstrings of a file with their line numbers, those of fields and constants included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        owners = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        previous = node if isinstance(node, owners) else None
        for statement in body:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))) if previous is not None:
                    yield statement.lineno, previous, text
            is_field = isinstance(statement, ast.Assign | ast.AnnAssign)
            previous = statement if is_field else None


def complaints(is_wrong):
    """The docstrings that are wrong, with their files and lines."""
    return [
        f"{path.relative_to(SOURCE)}:{line}: {text.strip().splitlines()[0]}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, owner, text in docstrings(path)
        if text.strip() and is_wrong(owner, text.strip())
    ]


def is_attribute(owner):
    """Return whether readers see a value: a field, a constant or a property."""
    decorators = [ast.unparse(each) for each in getattr(owner, "decorator_list", [])]
    is_property = any(each.endswith("property") for each in decorators)
    return is_property or isinstance(owner, ast.Assign | ast.AnnAssign)


def opens_with_a_riddle(owner, text):
    """Only an attribute may say "Whether": a function says "Return whether"."""
    return RIDDLES.match(text) is not None or (
        text.startswith("Whether") and not is_attribute(owner)
    )


def is_in_the_third_person(owner, text):
    is_function = isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef)
    return is_function and THIRD_PERSON.match(text) is not None


def test_no_docstring_opens_with_a_riddle():
    assert complaints(opens_with_a_riddle) == []


def test_a_functions_docstring_opens_with_an_imperative_or_a_noun():
    assert complaints(is_in_the_third_person) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("They, once they are there.", True),
        ("So many blocks, whatever the memory.", True),
        ("What the scheduler must keep to.", True),
        ("Whether no more tokens come.", True),
        ("Item of a list.", False),
        ("Assign each row.", False),
        ("Return whether no more tokens come.", False),
    ],
)
def test_a_riddle_is_recognised(text, expected):
    assert opens_with_a_riddle(None, text) is expected
