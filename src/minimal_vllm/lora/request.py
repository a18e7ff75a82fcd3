"""``LoRARequest``, which scripts for vLLM import even if they use no adapter."""

from typing import Any


class LoRARequest:
    """A request for a LoRA adapter, which is not supported.

    Raises:
        ValueError: always, so that no output is taken for the adapter's.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError("LoRA adapters can't be loaded; merge the adapter into the checkpoint")
