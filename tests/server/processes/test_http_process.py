"""The program of an HTTP process."""

import subprocess
import sys

from minimal_vllm.server.served_model import ModelFacts, ServedModel
from minimal_vllm.text.tokenizer import Tokenizer

IMPORTS = """
import sys
import minimal_vllm.server.processes.__main__
print(*(name for name in ("torch", "transformers", "triton") if name in sys.modules))
"""


def test_an_http_process_imports_no_torch_which_would_take_seconds_and_300_mb():
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


def test_a_preloaded_tokenizer_that_is_the_right_one_is_not_loaded_again(llm, checkpoint):
    facts = ModelFacts.of(llm)
    preloaded, other = Tokenizer(facts.tokenizer), Tokenizer(checkpoint("llama"))
    assert ServedModel.load(facts, preloaded).tokenizer is preloaded
    assert ServedModel.load(facts, other).tokenizer.folder == facts.tokenizer
