"""Records of what the engine does, and the trace file made of them."""
