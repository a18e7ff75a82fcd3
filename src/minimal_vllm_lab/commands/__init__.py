"""Commands that study the engine; ``pyproject.toml`` registers them as entry points."""
