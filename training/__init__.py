"""How the built-in demo models were made: corpus, tokenizer, training loop, model card."""
