"""Exercises: write parts of the engine yourself, and have them checked by ``check``."""
