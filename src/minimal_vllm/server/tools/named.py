"""Format of a call of a given function: the text is its arguments and nothing else."""

from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.message import CallWriter, MessageDelta, Reader
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.format import ToolFormat


class NamedCall(ToolFormat):
    """Format ``{…}``: the arguments of one call, which the model must make."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def constraint(self, answer: str | None = None) -> StructuredOutputsParams:  # noqa: ARG002
        """Return the grammar of the arguments: there is always a call, and no other answer."""
        return StructuredOutputsParams(grammar=f"start: {self._function.arguments_rule}")

    def make_reader(self, calls: CallWriter) -> Reader:
        """Return a reader that takes the whole text as arguments."""
        return ArgumentsReader(calls, self._function.name)


class ArgumentsReader(Reader):
    """Reader that takes the whole text as the arguments of a call."""

    def __init__(self, calls: CallWriter, name: str) -> None:
        self._calls = calls
        self._name = name

    def read(self, text: str, part: MessageDelta) -> None:
        """Append the text to the arguments."""
        if not text:
            return
        if not self._calls.has_begun:
            self._calls.begin(part, self._name)
        self._calls.add_arguments(part, text)

    def finish(self, part: MessageDelta) -> None:
        """Do nothing: no text is held back."""
