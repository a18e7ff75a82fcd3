"""Tool calling: functions that the model may ask the client to call.

A ``ToolFormat`` is how calls are written in the model's text: what that text is held to, if
anything, and the ``Reader`` that finds the calls in it.
"""
