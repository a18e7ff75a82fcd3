"""Exercises: parts of the engine to write oneself, with the checks of ``check`` as the teacher."""
