"""The forms that the content of a message may have in a chat template."""

from typing import Literal

ContentFormat = Literal["auto", "string", "openai"]
"""Form of a message's content in a template: ``string`` is one text, ``openai`` is a list of parts,
and ``auto`` is the form that the template seems to be written for."""
