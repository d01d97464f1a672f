"""Names of classes and functions, resolved to what they are, as MONAI and `eval` would, without importing anything new.

MONAI looks a target up among the classes and functions of its own modules first, then takes it as a dotted path or a
builtin (`monai.bundle.ConfigComponent.resolve_module_name`, `pydoc.locate`). A name is admitted for the object that it
leads to: `torch.os.system` leads to `posix.system`, whatever stands before it.
"""

from __future__ import annotations

import builtins
import inspect
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from pipeline.bundle.allowed import ALLOWED, BY_KEYWORD

GLOBALS = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}  # of every MONAI expression
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_ABSENT = object()


@dataclass(frozen=True)
class Resolved:
    """What a name leads to.

    Attributes:
        name: where it is defined, or the name as written where nothing of that name is loaded.
        admitted: it is listed, or allowed by the user.
        reason: why it is not admitted.
        only_by_keyword: some of its arguments name code: only a `_target_`, whose arguments are checked, may be it.
    """

    name: str
    admitted: bool
    reason: str = ""
    only_by_keyword: bool = False


class Names:
    """The listed names, and those that the user allows.

    Args:
        allow: names admitted beside the list; each stands for itself alone.

    Attributes:
        admitted: names of ``allow`` that were met.
        aliases: what the imports of a bundle add to the names of its expressions: name there to dotted name.
    """

    def __init__(self, allow: Collection[str] = ()) -> None:
        self.allow = frozenset(allow)
        self.admitted: set[str] = set()
        self.aliases: dict[str, str] = {}

    def allows(self, *names: str) -> bool:
        """Whether the user allows something by any of its names."""
        met = self.allow.intersection(names)
        self.admitted |= met
        return bool(met)

    def add_import(self, alias: str, name: str) -> None:
        """Let a name of the expressions stand for what was imported; for nothing where two imports differ."""
        same = self.aliases.setdefault(alias, name) == name
        if not same:
            self.aliases[alias] = "two different imports"

    def target(self, text: str) -> Resolved:
        """What a `_target_` leads to."""
        if not _NAME.fullmatch(text) or "__" in text:
            return Resolved(text, self.allows(text), "not a plain dotted name")
        modules = _modules_of()(text)
        if modules is None:
            return self._judge(text)
        several = [
            self._judge(f"{module}.{text}", text)
            for module in ([modules] if isinstance(modules, str) else modules)
        ]
        return next((each for each in several if not each.admitted), several[0])

    def dotted(self, text: str) -> Resolved:
        """What a dotted name in an expression leads to, from a module of every expression, an import or a builtin."""
        first, _, rest = text.partition(".")
        root = {**GLOBALS, **self.aliases}.get(first)
        if root is None and not hasattr(builtins, first):
            return Resolved(text, self.allows(text), "unknown name")
        return self._judge(".".join(part for part in (root or f"builtins.{first}", rest) if part))

    def _judge(self, path: str, written: str = "") -> Resolved:
        known = _listed()
        thing = _walk(path)
        if thing is _ABSENT:
            thing = _walk(f"builtins.{path}")
        path = path.removeprefix("builtins.")
        listed = known.get(id(thing))
        if listed is not None:
            return Resolved(listed, True, only_by_keyword=listed.rpartition(".")[2] in BY_KEYWORD)
        if _is_value(thing):
            return Resolved(path, True)
        name = path if thing is _ABSENT else _definition(thing, path)
        if self.allows(name, path, f"builtins.{path}", written):
            return Resolved(name, True)
        what = f"the module {name} itself" if inspect.ismodule(thing) else name
        return Resolved(name, False, f"{what} is not on the list of admitted names")


@cache
def _listed() -> dict[int, str]:
    """Identity of each listed object to its documented name."""
    found: dict[int, str] = {}
    for module, names in ALLOWED.items():
        import_module(module)
        for name in names.split():
            thing = _walk(f"{module}.{name}")
            if thing is not _ABSENT:
                found.setdefault(id(thing), f"{module}.{name}".removeprefix("builtins."))
    return found


@cache
def _modules_of() -> Callable[[str], list[str] | str | None]:
    """MONAI's own search for a short name among its classes and functions, once it is loaded."""
    _listed()
    from monai.bundle import ComponentLocator

    found: Callable[[str], list[str] | str | None] = ComponentLocator().get_component_module_name
    return found


def _walk(path: str) -> Any:
    """The object of a dotted path among loaded modules; neither imports nor runs a module's `__getattr__`."""
    parts = path.split(".")
    thing: Any = sys.modules.get(parts[0], _ABSENT)
    for end, part in enumerate(parts[1:], 2):
        if thing is _ABSENT:
            break
        module = sys.modules.get(".".join(parts[:end])) if inspect.ismodule(thing) else None
        thing = module or inspect.getattr_static(thing, part, _ABSENT)
        if isinstance(thing, (staticmethod, classmethod)):
            thing = thing.__func__
    return thing


def _definition(thing: Any, path: str) -> str:
    if inspect.ismodule(thing):
        return str(thing.__name__)
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return (
        f"{module}.{name}".removeprefix("builtins.")
        if isinstance(module, str) and isinstance(name, str)
        else path
    )


def _is_value(thing: Any) -> bool:
    """Numbers and types of numbers, such as `torch.float32` and `np.pi`."""
    return (
        type(thing) in (int, float, bool)
        or f"{type(thing).__module__}.{type(thing).__name__}" == "torch.dtype"
    )
