"""What the engine's claims about speed and memory rest on; see ``README.md`` here."""
