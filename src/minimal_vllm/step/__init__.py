"""One step as data: the request, the plan, and the batch of arrays. Imports no torch."""
