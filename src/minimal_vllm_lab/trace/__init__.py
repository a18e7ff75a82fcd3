"""Readers of trace files: back to records, and on to other formats."""
