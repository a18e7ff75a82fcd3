"""What each idea of the engine is worth: the same engine, on the same traffic, without it.

An idea is switched off by an option, or by a policy of a few lines that the engine takes in place
of its own (see ``engine.parts``).
"""
