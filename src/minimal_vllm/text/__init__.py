"""Between text and tokens: the tokenizer, the chat template, and text that grows with its tokens.

Nothing here imports torch or transformers.
"""
