"""What the engine tells those who watch it."""
