"""Access to a GPU: its properties, data transfers, and kernel launches."""
