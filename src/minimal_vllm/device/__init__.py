"""What the engine needs of a GPU: its properties, data transfers, and kernel launches."""
