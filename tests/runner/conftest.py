"""Small batches share prefixes here."""

from sharing import sharing_pays_always

__all__ = ["sharing_pays_always"]
