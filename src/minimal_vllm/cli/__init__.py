"""The command line: ``minimal-vllm generate``, ``chat``, ``serve`` and ``info``.

No module here imports torch before a command runs, so that ``--help`` answers at once.
"""
