"""The view: a page in the browser that shows an engine at work, live or from a trace."""
