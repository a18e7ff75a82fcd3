"""Reading traces: from a file back to records, and on to other formats."""
