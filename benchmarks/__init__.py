"""Benchmarks behind this project's claims about speed and memory; see ``README.md``."""

import minimal_vllm  # noqa: F401 - before torch: it sets how OpenMP's threads wait
