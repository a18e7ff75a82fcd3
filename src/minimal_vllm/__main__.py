"""``python -m minimal_vllm`` is the command ``minimal-vllm``."""

from minimal_vllm.cli.main import main

main()
