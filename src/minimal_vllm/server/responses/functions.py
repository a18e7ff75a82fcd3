"""Names of functions, as the model knows them.

A function of a namespace is called ``namespace.name`` on the chat path, which has no namespaces.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from minimal_vllm.server.responses.request import FunctionTool, NamespaceTool, Tool


@dataclass(frozen=True, slots=True)
class FunctionPath:
    """Name of a function, and the namespace that it was declared in."""

    name: str
    namespace: str | None = None

    @property
    def full_name(self) -> str:
        """The name by which the model knows the function."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name


def declared_functions(tools: Iterable[Tool]) -> list[tuple[FunctionPath, FunctionTool]]:
    """Return all functions that a request declares, those in namespaces included."""
    functions: list[tuple[FunctionPath, FunctionTool]] = []
    for tool in tools:
        namespace = tool.name if isinstance(tool, NamespaceTool) else None
        members = tool.tools if isinstance(tool, NamespaceTool) else [tool]
        functions += [
            (FunctionPath(member.name, namespace), member)
            for member in members
            if isinstance(member, FunctionTool)
        ]
    return functions
