"""``get_tokenizer``, which scripts for vLLM import from a module of this name."""

from pathlib import Path
from typing import Any

from minimal_vllm.model.hub import find_checkpoint
from minimal_vllm.text.chat_template import load_chat_template
from minimal_vllm.text.script_tokenizer import make_script_tokenizer
from minimal_vllm.text.tokenizer import Tokenizer
from minimal_vllm.vllm_arguments import ENGINE


def get_tokenizer(
    tokenizer_name: str | Path,
    *,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    **unsupported: Any,
) -> Any:
    """Load the tokenizer of a model, with the methods of Hugging Face's.

    Args:
        tokenizer_name: folder with the tokenizer, GGUF file, or id of a model on the hub.
        tokenizer_mode: ``"auto"``.
        trust_remote_code: has no effect, since no code that comes with a model is run.
        revision: branch, tag or commit to load from the hub.
        download_dir: folder for downloaded files. Default: the hub's cache.
        **unsupported: vLLM's other arguments, which can only be None.

    Raises:
        ValueError: there is no such tokenizer, or an argument is not supported.
    """
    ENGINE["tokenizer_mode"].check("tokenizer_mode", tokenizer_mode)
    ENGINE["trust_remote_code"].check("trust_remote_code", trust_remote_code)
    for name, value in unsupported.items():
        if value is not None:
            raise ValueError(f"get_tokenizer does not support {name}={value!r}: leave it out")
    checkpoint = find_checkpoint(str(tokenizer_name), revision, download_dir, weights=False)
    tokenizer = Tokenizer(checkpoint)
    return make_script_tokenizer(tokenizer, load_chat_template(tokenizer))
