"""One step on the device: from a plan to sampled tokens."""
