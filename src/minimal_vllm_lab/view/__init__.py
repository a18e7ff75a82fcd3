"""A page in the browser that shows the engine at work, live or from a trace."""
