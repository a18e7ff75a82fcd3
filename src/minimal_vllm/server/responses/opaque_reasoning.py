"""Reasoning as clients send it back: ``encrypted_content``, which they don't look into.

Some clients, such as Codex, drop the text of the reasoning from the conversation and keep this.
Here it is the text in another encoding, not a secret: the answer holds the text anyway.
"""

import base64
import binascii

PREFIX = "minimal-vllm:"


def encode_reasoning(text: str) -> str:
    """Return the ``encrypted_content`` that stands for a text."""
    return PREFIX + base64.b64encode(text.encode()).decode()


def decode_reasoning(content: str) -> str:
    """Return the text of an ``encrypted_content``; empty if another server made it."""
    if not content.startswith(PREFIX):
        return ""
    try:
        return base64.b64decode(content.removeprefix(PREFIX), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
