"""The model, from a checkpoint on disk to logits. One decoder covers every supported architecture.

Read in this order: ``decoder``, ``layers``, ``linear``, ``norm``, ``rope`` (the network);
``config``, ``registry``, ``rope_config`` (reading and validating config.json); ``loader``,
``safetensors_file`` (the weights); ``hub``, ``fetch``, ``generation_config`` (finding a checkpoint,
and its sampling defaults); ``gguf_config``, ``gguf_weights`` (the same for GGUF files);
``quantization_config``, ``quantized_experts``, ``quantization`` (weights of fewer bits);
``deferred``, ``triton_modules``, ``triton_weights``, ``kernels`` (the same network on a GPU).
"""
