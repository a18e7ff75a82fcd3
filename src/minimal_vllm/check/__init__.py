"""Does a replaced part keep to what the engine relies on? If not: the smallest history, as a lesson.

A check plays random traffic against a part and holds each answer to the rules in ``rules``. The
history that breaks one is shrunk by Hypothesis (MacIver et al., JOSS 2019) to the few calls that
matter.
"""
