"""What ``minimal-vllm learn start`` writes: one file for each exercise, to be completed."""
