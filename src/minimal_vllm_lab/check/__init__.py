"""Whether a part of the user's does what the engine relies on; if not, a lesson.

A check plays random traffic against a part, and holds all that it sees to the rules that stand at
the beginning of its file. Hypothesis (MacIver et al., JOSS 2019) looks for a history that breaks
one, and shrinks it to the few calls that matter.
"""
