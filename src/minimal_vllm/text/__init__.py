"""Text to tokens and back: the tokenizer, chat templates, and the incremental detokenizer.

Nothing here imports torch or transformers.
"""
