"""When requests come, and what their latencies come to: the same for real and simulated ones."""
