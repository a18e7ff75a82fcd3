"""Tool calling: functions that the model may ask the client to call.

A ``ToolFormat`` describes how calls are written in the model's text: the grammar that the text must
match, if any, and the ``Reader`` that finds the calls in it.
"""
