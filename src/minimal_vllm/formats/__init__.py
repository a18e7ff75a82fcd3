"""File formats that more than one room reads. Nothing here imports torch."""
