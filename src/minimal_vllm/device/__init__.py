"""Access to a GPU (properties, transfers, launches), and to a CPU's threads and pages."""
