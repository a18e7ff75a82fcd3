"""Arrival times, latency statistics and latency objectives, for real and simulated requests."""
