"""Benchmarks behind this project's claims about speed and memory; see ``README.md``."""
