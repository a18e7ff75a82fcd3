"""The view as an extension of the server, registered in ``pyproject.toml``."""

from fastapi import APIRouter

from minimal_vllm_lab.view.live import LiveView
from minimal_vllm_lab.view.routes import live_routes


class View(LiveView):
    """A live view that adds the routes of its page to the server."""

    def routes(self) -> APIRouter:
        """Return the routes to add to the server."""
        return live_routes(self)
