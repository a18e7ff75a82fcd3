"""Several processes, called ranks, compute one model: tensor parallelism.

Every rank runs the same engine, with the same deterministic scheduler. Rank 0 is the process that
the user has started. Before it does anything, it tells the others to do the same: add a request,
abort one, compute a step. What depends on the time, which is how much to guess, it decides for all.
Nothing else is sent but the parts of sums and logits, by the model::

    rank 0    LeadingEngine ── add_request, abort, step ──▶ Engine of rank 1, 2, …
              Scheduler     ────────── decisions ─────────▶ Scheduler
              model         ◀───────── all-reduce ────────▶ model
"""
