"""Whether references lead somewhere, and targets exist and take their arguments."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.compose.words import nearest
from pipeline.errors import UsageError

REFERENCE = re.compile(r"@([A-Za-z_]\w*(?:(?:::|#)\w+)*)")


def check_references(config: dict[str, Any]) -> None:
    """Refuse a reference to an id that is not there.

    Raises:
        UsageError: naming the place, and the nearest id.
    """
    for where, text in _texts(config):
        if text.startswith(("@", "$")):
            for name in REFERENCE.findall(text):
                place: Any = config
                for part in re.split(r"::|#", name):
                    if isinstance(place, dict) and part in place:
                        place = place[part]
                    elif isinstance(place, list) and part.isdecimal() and int(part) < len(place):
                        place = place[int(part)]
                    else:
                        known = list(place) if isinstance(place, dict) else []
                        raise UsageError(
                            f"{where} refers to @{name}, which is not there",
                            found=text,
                            hint=nearest(part, known),
                        )


def check_components(config: dict[str, Any]) -> None:
    """Refuse targets that cannot be found and arguments that they do not take. Imports MONAI.

    Raises:
        UsageError: naming the place, and the nearest known argument.
    """
    for where, component in _components(config):
        target = component["_target_"]
        known = arguments_of(component)
        if known is None or not known:
            continue
        for key in component:
            if key.startswith("_") and key.endswith("_"):
                continue
            if key not in known and "**" not in known:
                raise UsageError(
                    f"{where}: {target} takes no argument {key!r}",
                    hint=nearest(key, [name for name in known if name != "**"]),
                )


def arguments_of(component: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that a component's target takes (``**`` for any); empty where there is no target."""
    import inspect
    from pydoc import ErrorDuringImport, locate

    target = component.get("_target_")
    if not isinstance(target, str):
        return ()
    module = _locator().get_component_module_name(target)
    module = module[0] if isinstance(module, list) else module
    try:
        found = locate(f"{module}.{target}" if module else target)
    except ErrorDuringImport:
        found = None
    if not callable(found):
        raise UsageError(
            f"no component {target!r}", hint="a MONAI class by its name, or a dotted path to import"
        )
    arguments: list[str] = []
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.append("**")
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            arguments.append(parameter.name)
    return tuple(arguments) or ("**",)


@functools.cache
def _locator() -> Any:
    from monai.bundle.config_item import ComponentLocator

    return ComponentLocator()


def _components(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, value in node.items():
            yield from _components(value, f"{where}::{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _components(value, f"{where}::{index}")


def _texts(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{where}::{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, f"{where}::{index}")
