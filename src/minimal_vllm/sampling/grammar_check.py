"""Compiling a grammar, first in a separate process, which runs this file as a program.

Most grammars compile in milliseconds. But some regular expressions of fifty characters would take
minutes or all of the memory, and some rules are nested so deeply that the compiler overflows its
stack, which kills the process. The text of a grammar doesn't show this. The program therefore first
compiles the grammar, which it reads from standard input, with limits on time, memory and stack.
Only then is the grammar compiled in the engine's process.
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
"""Options of llguidance. Where the grammar allows only one text, the model still chooses how to
split it into tokens."""

MAX_COMPILE_SECONDS = 5
"""Maximum CPU time of a compilation, in seconds. On a busy machine, more wall-clock time may
pass."""
MAX_COMPILE_BYTES = 512 * 2**20
MAX_COMPILE_STACK = 4 * 2**20
"""Maximum stack of a compilation, in bytes: half of a thread's usual stack, so that a grammar that
fits here also fits into the engine's threads."""


def compile_grammar(source: str, tokenizer: "LLTokenizer") -> "LLMatcher":
    """Return a matcher in its initial state.

    Args:
        source: the grammar, in llguidance's variant of Lark's syntax.
        tokenizer: the tokens that the matcher allows and consumes.

    Raises:
        ValueError: the grammar is invalid, or nothing can match it; the message says which.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(tokenizer, source + _OPTIONS, log_level=0, limits=limits)
    matcher.compute_bitmask()  # fails here if it is too ambiguous or matches nothing
    if matcher.is_error():
        raise ValueError(explain(matcher))
    return matcher


def check_grammar(source: str) -> str:
    """Compile a grammar in a separate process, with single bytes as tokens.

    Returns:
        The grammar in Lark's syntax, converted if it was in EBNF.

    Raises:
        ValueError: the grammar is invalid, or compiling it takes too much time or memory.
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
    """Return the error of a matcher on one line; empty if there is none."""
    # Leave out the quoted lines of the grammar, and what is not for users.
    error = re.split(r"\n *\d+ \| |\n<| <non-verbose/>", matcher.get_error())[0]
    if "NoExtension" in error:
        return "no text matches it"
    if "unknown special token" in error:
        return "special tokens are no text, so it can't name them"
    # The location means nothing to users who wrote only a regular expression or a schema.
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
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # leave no core file when a signal ends it
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    threading.stack_size(MAX_COMPILE_STACK)
    thread = threading.Thread(target=_main)
    thread.start()
    thread.join()
