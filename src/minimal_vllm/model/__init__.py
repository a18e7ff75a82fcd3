"""From a checkpoint's folder to logits: one decoder, configured for every supported architecture.

Read in this order: ``decoder`` and ``layers`` (the network), ``rope`` (positions); ``config``,
``registry``, ``layer_config``, ``rope_config`` (what a config.json means, checked); ``loader`` and
``safetensors_file`` (the weights); ``hub`` and ``generation_config`` (what else a checkpoint says,
and where it comes from).
"""
