"""Check replacement classes: does a user's class do everything the engine relies on?

Each check drives a class with random traffic and compares its behavior with a list of rules.
Hypothesis (MacIver et al., JOSS 2019) searches for a history that breaks a rule, and shrinks it to
the few calls that matter.
"""
