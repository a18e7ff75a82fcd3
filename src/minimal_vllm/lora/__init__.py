"""LoRA adapters, under vLLM's module names. They are not supported yet."""
