"""From a checkpoint's folder to logits: one decoder, configured for every supported architecture.

Read in this order: ``decoder`` and ``layers`` (the network), ``rope`` (positions); ``config``,
``registry``, ``rope_config`` (what a config.json means, checked); ``loader`` and
``safetensors_file`` (the weights); ``hub``, ``fetch`` and ``generation_config`` (where a checkpoint
comes from, and what else it says); ``gguf_config`` and ``gguf_weights`` (the same for a GGUF file).
"""
