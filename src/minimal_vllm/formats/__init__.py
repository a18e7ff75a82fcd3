"""File formats that several packages read. Nothing here imports torch."""
