"""Compiles a grammar; as a program, the grammar on standard input, to see whether that ends well.

Most grammars compile in milliseconds. But there are regular expressions of fifty characters that
would take minutes or all of the memory, and rules nested so deep that the compiler overflows its
stack, which ends the process. No check of the text can tell which. So a grammar is first compiled
here, in a process of its own, with a bound on its time, its memory and its stack, and only then
where it would harm others.
"""

import json
import re
import resource
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
"""Where the grammar leaves one text only, the model still chooses how it is cut into tokens."""

MAX_COMPILE_SECONDS = 5
"""Of the processor's time: on a machine with other work, more of real time may pass."""
MAX_COMPILE_BYTES = 512 * 2**20
MAX_COMPILE_STACK = 4 * 2**20
"""Half of what threads usually have, so that what fits here fits there."""


def compile_grammar(source: str, tokenizer: "LLTokenizer") -> "LLMatcher":
    """A matcher at the beginning of the output.

    Args:
        source: in llguidance's variant of Lark's syntax.
        tokenizer: what the matcher's tokens are.

    Raises:
        ValueError: the grammar is wrong, or nothing can match it; the message says what it is.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(tokenizer, source + _OPTIONS, log_level=0, limits=limits)
    matcher.compute_bitmask()  # what is too ambiguous, or matches nothing, comes to light here
    if matcher.is_error():
        raise ValueError(explain(matcher))
    return matcher


def check_grammar(source: str) -> str:
    """Compile a grammar in a process of its own, for single bytes as tokens.

    Returns:
        The grammar in Lark's syntax, if it was in EBNF.

    Raises:
        ValueError: it is wrong, or compiling it takes too much.
    """
    done = subprocess.run(  # noqa: S603 # our own file
        [sys.executable, "-P", "-X", "utf8", __file__, str(MAX_COMPILE_SECONDS)],
        input=source,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode == -signal.SIGXCPU:
        raise ValueError(f"compiling it takes more than {MAX_COMPILE_SECONDS} s")
    if done.returncode or not done.stdout:
        raise ValueError("compiling it takes too much memory, or it is nested too deep")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(answer["error"])
    return str(answer["source"])


def explain(matcher: "LLMatcher") -> str:
    """The error of a matcher on one line; empty if there is none."""
    # Without the lines of the grammar that it quotes, and without what is not for users.
    error = re.split(r"\n *\d+ \| |\n<| <non-verbose/>", matcher.get_error())[0]
    if "NoExtension" in error:
        return "no text matches it"
    if "unknown special token" in error:
        return "special tokens are no text, so it can't name them"
    # Where it stands says nothing to those who wrote but a regular expression, or a schema.
    error = re.sub(r"^at (?:1\(8\)|\d+\(\d+\)(?=: failed to compile JSON)): ", "", error)
    return " ".join(error.split())


def _answer(source: str) -> dict[str, str]:
    from llguidance import LLTokenizer, grammar_from

    try:
        lark = grammar_from("grammar", source)
        compile_grammar(lark, LLTokenizer("byte")).deep_copy()
    except ValueError as error:
        return {"error": str(error)}
    return {"source": lark}


def _main() -> None:
    print(json.dumps(_answer(sys.stdin.read())))


if __name__ == "__main__":
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_COMPILE_BYTES, MAX_COMPILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a signal that ends it leaves no file
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    threading.stack_size(MAX_COMPILE_STACK)
    thread = threading.Thread(target=_main)
    thread.start()
    thread.join()
