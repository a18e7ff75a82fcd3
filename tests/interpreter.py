"""Triton's interpreter, in which kernels run where there is no GPU, made quicker for tests."""

from functools import cache
from inspect import getmembers


def remember_builtins():
    """Look for the builtins of Triton's language once, not at each call of a device function.

    The interpreter replaces them at each call. Looking for them takes up to half of its time.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @cache
    def builtins_of(owner):
        return {name: member for name, member in getmembers(owner) if is_builtin(member)}

    def replace(owner, builder, scope):
        # All of an owner's are replaced together, by the outermost call, and restored together.
        first = next(iter(builtins_of(owner)), None)
        if first is None or not is_builtin(getattr(owner, first)):
            return
        for name, member in builtins_of(owner).items():
            interpreter._patch_attr(owner, name, member, builder, scope)

    interpreter._patch_builtin = replace
