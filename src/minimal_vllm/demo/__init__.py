"""The built-in model, a smaller draft of it with the same tokenizer, and an EAGLE-3 head of it.

They are folders in the hub's format, trained by the scripts in `training`; their model cards
(`README.md`) say on what, and how well.
"""

from pathlib import Path

DEMO_MODEL_DIR: Path = Path(__file__).parent / "model"
DEMO_MODEL_NAME = "minimal-vllm-demo"
DRAFT_MODEL_DIR: Path = Path(__file__).parent / "draft"
EAGLE_HEAD_DIR: Path = Path(__file__).parent / "eagle"

END_OF_TURN = '"'
"""Text that ends an answer. The chat template writes a conversation as a novel's dialogue, in which
the model speaks in quotation marks, because it has no token for the end of a turn."""
