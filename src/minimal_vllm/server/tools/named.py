"""The format of a call whose function is settled: the text is its arguments, and nothing else."""

from minimal_vllm.sampling_params import StructuredOutputsParams
from minimal_vllm.server.message import CallWriter, MessageDelta, Reader
from minimal_vllm.server.tools.declaration import Function
from minimal_vllm.server.tools.format import ToolFormat


class NamedCall(ToolFormat):
    """``{…}``: the arguments of one call, which the model has to make."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def constraint(self, answer: str | None = None) -> StructuredOutputsParams:  # noqa: ARG002
        """Return the grammar of the arguments: there is always a call, and no other answer."""
        return StructuredOutputsParams(grammar=f"start: {self._function.arguments_rule}")

    def make_reader(self, calls: CallWriter) -> Reader:
        """There is nothing to find."""
        return ArgumentsReader(calls, self._function.name)


class ArgumentsReader(Reader):
    """All is the arguments of a call."""

    def __init__(self, calls: CallWriter, name: str) -> None:
        self._calls = calls
        self._name = name

    def read(self, text: str, part: MessageDelta) -> None:
        """As it is."""
        if not text:
            return
        if not self._calls.has_begun:
            self._calls.begin(part, self._name)
        self._calls.add_arguments(part, text)

    def finish(self, part: MessageDelta) -> None:
        """Nothing is held back."""
