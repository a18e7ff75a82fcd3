"""The server's log."""

import logging


def log_to_stderr() -> None:
    """Print the server's log on standard error, with times."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("minimal_vllm").setLevel(logging.INFO)
