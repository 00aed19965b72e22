"""Parts of a network by name: one that this program knows, or your own as `package.module:factory`.

A name is what a checkpoint remembers of a part, so every part that it takes to rebuild a network has one.
"""
import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping

from torch import nn

from utils.errors import InputError

MANY = 8  # names; of more, only those near to the wrong one are said
TIMM = "timm:"  # before the name of one of that library's networks, which is not somebody's own module


def is_own(name: str) -> bool:
    """Whether a name is that of somebody's own part, package.module:factory, which has to be imported."""
    return ":" in name and not name.startswith(TIMM)


def require_named(source: str, kind: str, name: str, given: str | None) -> None:
    """Raises InputError if `source`, a file or a folder, names an own part that the user did not name too.

    Importing a part runs code, so a file alone must not choose it.
    """
    if is_own(name) and given != name:
        raise InputError(f"{source} uses the {kind} {name!r}, which this program would have to import; if you trust "
                         f"it, name it too: {name}", about=kind)


def check_name(kind: str, name: str, known: Mapping[str, object]) -> None:
    """Raises InputError unless the name is known or that of an own part. Imports nothing."""
    if name not in known and not is_own(name):
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) if len(known) > MANY else ()
        hint = f"near are {', '.join(near)}" if near else f"known are {', '.join(list(known)[:MANY])}"
        raise InputError(f"unknown {kind} {name!r}; {hint}, and your own is named package.module:factory", about=kind)


def find(kind: str, name: str, known: Mapping[str, Callable]) -> Callable:
    """The factory (a class or a function) of a part of this kind, such as "backbone" or "connection".

    Raises InputError if the name is unknown or cannot be imported.
    """
    check_name(kind, name, known)
    if name in known:
        return known[name]
    module_name, _, factory_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a relative name
        raise InputError(f"the {kind} {name!r} cannot be imported ({error}); check the name, and that its module is "
                         f"on PYTHONPATH", about=kind) from error
    if not callable(factory):
        raise InputError(f"the {kind} {name!r} is a {type(factory).__name__}; name a class or a function", about=kind)
    return factory


def make(kind: str, name: str, known: Mapping[str, Callable], *arguments, expected: type = nn.Module) -> nn.Module:
    """Calls the factory of a part. Raises InputError where an own one does not take these arguments.

    expected: the class of what it has to return, which is checked too.
    """
    factory = find(kind, name, known)
    if not is_own(name):
        return factory(*arguments)
    try:
        inspect.signature(factory).bind(*arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"the {kind} {name!r} cannot be called with {len(arguments)} arguments ({error}); "
                         f"see docs/extending.md for the arguments of each part", about=kind) from error
    part = factory(*arguments)
    if not isinstance(part, expected):
        raise InputError(f"the {kind} {name!r} gives a {type(part).__name__}; it has to give a "
                         f"{expected.__module__}.{expected.__name__}, see docs/extending.md", about=kind)
    return part
