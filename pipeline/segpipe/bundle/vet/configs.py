"""All that a config would run: every target, expression, import and macro, with its place, and nothing of it executed.

What is parsed here is an expression as MONAI evaluates it (`syntax`), so that nothing can hide in the difference.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segpipe.bundle.vet.arguments import ANYWHERE, BY_TARGET, short_name
from segpipe.bundle.vet.bundle_files import Finding, Kind, Use, shown
from segpipe.bundle.vet.names import ATTRIBUTES, GLOBALS, METHODS, Names
from segpipe.bundle.vet.references import DEEPEST_REFERENCES, reference_depth
from segpipe.bundle.vet.syntax import (
    REFERENCES,
    SPLIT,
    as_evaluated,
    as_read,
    dotted_name,
    has_relative_ids,
    length_with_paths,
    parsed,
    reference_of,
)
from segpipe.bundle.vet.values import LONGEST, WRITTEN, Arguments, Problem, is_free

_OWN_MACRO = re.compile(r"%(?:#|::)*\w+(?:(?:#|::)\w+)*", re.ASCII)
KeyPath = tuple[str, ...]
_PLAIN = re.compile(r"\w+", re.ASCII)

_HARMLESS_NODES = """
    Expression Constant List Tuple Dict Set Starred BinOp UnaryOp BoolOp Compare IfExp Subscript Slice FormattedValue
    JoinedStr operator unaryop boolop cmpop expr_context
"""
_HARMLESS = tuple(getattr(ast, name) for name in _HARMLESS_NODES.split())


@dataclass(frozen=True)
class _Entry:
    """A value of a config: its path, the last part of its key, the mapping around it, whether MONAI merges it in."""

    path: KeyPath
    key: str
    value: Any
    beside: Mapping[Any, Any]
    merged: bool


def vet_config(document: Any, file: str, names: Names) -> Iterator[Use]:
    """Yield what a config would run, with what speaks against it; arguments and macros only where something does."""
    read, odd = as_read(document)
    arguments = Arguments(names, read)
    for entry in _entries(document):
        if use := _vet(entry, file, arguments):
            yield use
    for key in odd:
        why = "a key of which only MONAI can tell where it leads"
        yield _use(file, _Entry((key,), key, key, {}, True), "argument", [(why, None)])
    yield from _vet_arguments(read, file, arguments)
    if (depth := reference_depth(read)) > DEEPEST_REFERENCES:
        reason = f"references and values more than {DEEPEST_REFERENCES} deep"
        yield Use(file, "", "argument", f"{depth} deep", (), (Finding(file, "", f"{depth} deep", reason),))


def _vet_arguments(read: dict[str, Any], file: str, arguments: Arguments) -> Iterator[Use]:
    """Yield arguments that may not be given, in the config as MONAI reads it."""
    for id in WRITTEN:
        if problems := list(arguments.of_place(id, read[id])) if id in read else []:
            yield _use(file, _Entry((id,), id, read[id], read, False), "argument", problems)
    for path, mapping in _mappings(read):
        target = mapping.get("_target_")
        if target is None:
            continue
        resolved = arguments.names.target(target) if isinstance(target, str) else None
        for parameter, problem in arguments.of_component(mapping, resolved):
            entry = _Entry((*path, parameter), parameter, mapping.get(parameter), mapping, False)
            yield _use(file, entry, "argument", [problem])


def _mappings(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield each mapping within a config, with its path."""
    if isinstance(value, dict):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _mappings(item, (*path, str(key)))


def vet_metadata(document: Any, file: str) -> Iterator[Use]:
    """Yield what in metadata MONAI would run: there may be nothing, as it becomes part of each config."""
    for entry in _entries(document):
        if entry.key == "_target_":
            yield _use(file, entry, "target", [("metadata with a target", None)])
        elif isinstance(entry.value, str) and entry.value[:1] in ("$", "@", "%"):
            yield _use(file, entry, "expression", [("metadata must hold no expression", None)])


def imports_of(document: Any) -> Iterator[tuple[str, str]]:
    """Yield each name that the imports of a config add to its expressions, with what it stands for."""
    for entry in _entries(document):
        text = entry.value
        if isinstance(text, str) and text.startswith("$") and (found := imported(text)):
            yield found


def _entries(value: Any, path: KeyPath = (), merged: bool = False) -> Iterator[_Entry]:
    """Yield each value of a document. MONAI takes keys ``a#b`` of the top level apart, merges mappings at ``+a``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    beside = value if isinstance(value, dict) else {}
    for key, item in items:
        parts = SPLIT.split(str(key).removeprefix("+"))
        below = (*path, *parts) if not path else (*path, str(key))
        yield _Entry(below, parts[-1], item, beside, merged or len(parts) > 1)
        yield from _entries(item, below, not path and str(key).startswith("+"))


def _vet(entry: _Entry, file: str, arguments: Arguments) -> Use | None:
    key, value = entry.key, entry.value
    text = value if isinstance(value, str) else ""
    if key == "_target_":
        return _target(entry, file, arguments.names)
    if key == "_mode_" and (value not in ("default", "callable") or "_target_" not in entry.beside or entry.merged):
        why = "a mode other than default and callable, or not beside its target"
        return _use(file, entry, "argument", [(why, None)])
    if key in ANYWHERE or entry.merged:
        problems = list(arguments.of_argument(None, key, value))
        if problems:
            return _use(file, entry, "argument", problems)
    if text.startswith("$"):
        used, problems = vet_expression(text, entry.path, arguments.names, arguments)
        return _use(file, entry, "import" if imported(text) else "expression", problems, used)
    if text.startswith("%"):
        plain = _OWN_MACRO.fullmatch(text) and is_plain_path(entry.path) and not key.startswith("_")
        why = "a macro may only name an id of its own file, and not stand for a target or a mode"
        return _use(file, entry, "macro", [] if plain else [(why, None)])
    return None


def _target(entry: _Entry, file: str, names: Names) -> Use:
    value = entry.value
    if not isinstance(value, str) or value[:1] in ("$", "@", "%"):
        why = "a target that is not written out: a reference, an expression or a macro could make it anything"
        return _use(file, entry, "target", [(why, None)])
    if not value.isascii():
        return _use(file, entry, "target", [("characters beyond ASCII, which look like others", None)])
    resolved = names.target(value)
    problems: list[Problem] = [] if resolved.admitted else [(resolved.reason, resolved.name)]
    direct = entry.beside.get("_mode_", "default") == "default" and not entry.merged
    if resolved.listed and not direct and not is_free(resolved.name):
        problems.append((f"{resolved.name} may only be used directly: not every argument is admitted", None))
    return _use(file, entry, "target", problems, [resolved.name])


def _use(file: str, entry: _Entry, kind: Kind, problems: Sequence[Problem], used: Sequence[str] = ()) -> Use:
    place, text = "::".join(entry.path), shown(entry.value)
    findings = tuple(Finding(file, place, text, why, name) for why, name in problems)
    return Use(file, place, kind, text, tuple(dict.fromkeys(used)), findings)


def vet_expression(
    text: str, path: Sequence[str], names: Names, arguments: Arguments | None = None
) -> tuple[list[str], list[Problem]]:
    """Return the names that an expression uses, and what in it is not admitted.

    Args:
        text: the config's string, from its ``$`` on.
        path: where it stands, the keys from the top.
        names: what is admitted.
        arguments: judges those of its calls, with the config that its references lead into.
    """
    if not text.isascii():
        return [], [("characters beyond ASCII: names that look alike are taken for others", None)]
    if REFERENCES in text or length_with_paths(text, path) > LONGEST:
        return [], [(f"more than {LONGEST} characters, or a name that MONAI keeps for itself", None)]
    if has_relative_ids(text) and not is_plain_path(path):
        return [], [("a relative id below keys that would become part of the expression", None)]
    source = as_evaluated(text, path)
    for written in (text[1:], source):
        statements = _statements(written) if "import" in written else []
        if statements and isinstance(statements[0], (ast.Import, ast.ImportFrom)):
            return _vet_import(statements, names)
    tree = parsed(source, "eval")
    if tree is None:
        return [], [("it cannot be parsed", None)]
    if arguments is None or has_relative_ids(text):
        arguments = Arguments(names, follows=not has_relative_ids(text))
    vetter = _Vetter(arguments)
    try:
        vetter.visit(tree)
    except RecursionError:
        return vetter.used, [("nested too deeply", None)]
    return vetter.used, list(dict.fromkeys(vetter.problems))


def imported(text: str) -> tuple[str, str] | None:
    """Return the name that a ``$import`` adds to all expressions, and what it stands for; None for other strings."""
    statements = _statements(text[1:]) if "import" in text else []
    return _alias(statements[0]) if statements and isinstance(statements[0], (ast.Import, ast.ImportFrom)) else None


def _alias(statement: ast.Import | ast.ImportFrom) -> tuple[str, str]:
    module = f"{statement.module}." if isinstance(statement, ast.ImportFrom) else ""
    alias = statement.names[0]
    return alias.asname or alias.name, module + alias.name


def is_plain_path(path: Sequence[str]) -> bool:
    """Return whether the keys of a path are letters, digits and underscores alone."""
    return all(_PLAIN.fullmatch(key) for key in path)


def _statements(source: str) -> list[ast.stmt]:
    tree = parsed(source, "exec")
    return tree.body if tree else []


def _vet_import(statements: list[ast.stmt], names: Names) -> tuple[list[str], list[Problem]]:
    statement = statements[0]
    if not isinstance(statement, (ast.Import, ast.ImportFrom)) or len(statements) > 1 or len(statement.names) > 1:
        return [], [("an import of several things, of which MONAI would take the first", None)]
    if isinstance(statement, ast.ImportFrom) and (statement.level or not statement.module):
        return [], [("a relative import", None)]
    known_as, name = _alias(statement)
    taken = hasattr(builtins, known_as) or GLOBALS.get(known_as, name) != name
    if taken or "__" in name + known_as:
        return [name], [(f"it would change the meaning of {known_as}", None)]
    return [name], [] if names.allows(name) else [(f"it imports {name}", name)]


class _Vetter:
    """Walks one parsed expression; what it does not know is a problem."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments, self.names = arguments, arguments.names
        self.used: list[str] = []
        self.problems: list[Problem] = []
        self.local: list[str] = []

    def visit(self, node: ast.AST) -> None:
        special = getattr(self, f"_{type(node).__name__.lower()}", None)
        if special is not None:
            special(node)
        elif isinstance(node, _HARMLESS):
            for child in ast.iter_child_nodes(node):
                self.visit(child)
        else:
            self._refuse(f"{type(node).__name__} is not among what an expression may hold")

    def _refuse(self, why: str, name: str | None = None) -> None:
        self.problems.append((why, name))

    def _name(self, node: ast.Name) -> None:
        if node.id not in self.local and node.id != REFERENCES:
            self._dotted(node.id)
        elif node.id == REFERENCES:
            self._refuse("the references as a whole")

    def _attribute(self, node: ast.Attribute) -> None:
        if (dotted := self._as_dotted(node)) is not None:
            return self._dotted(dotted)
        within: ast.expr = node
        while isinstance(within, ast.Attribute):
            name = within.attr
            if "__" in name or not (name in METHODS | ATTRIBUTES or self.names.allows(f".{name}")):
                self._refuse(f".{name} is not a listed method", None if "__" in name else f".{name}")
            within = within.value
        self.visit(within)

    def _as_dotted(self, node: ast.expr) -> str | None:
        """Return ``a.b.c`` where ``a`` is a name from outside the expression."""
        dotted = dotted_name(node)
        return None if dotted is None or dotted.partition(".")[0] in self.local else dotted

    def _dotted(self, text: str, call: ast.Call | None = None) -> None:
        """Judge a name from outside, and what it is called with; not called, others may call it with anything."""
        if "__" in text:
            return self._refuse(f"{text}: names with two underscores reach into Python itself")
        resolved = self.names.dotted(text)
        self.used.append(resolved.name)
        if not resolved.admitted:
            self._refuse(resolved.reason, resolved.name)
        elif resolved.listed and short_name(resolved.name) in BY_TARGET:
            self._refuse(f"{resolved.name} may be used by `_target_` alone")
        elif call is not None:
            self.problems += self.arguments.of_call(resolved, call)
        elif resolved.listed and not is_free(resolved.name):
            self._refuse(f"{resolved.name} may only be called directly: not every argument is admitted")

    def _call(self, node: ast.Call) -> None:
        dotted = self._as_dotted(node.func)
        if dotted is not None:
            self._dotted(dotted, node)
        else:
            self._called(node)
            self.visit(node.func)
        for argument in node.keywords:
            if argument.arg is None:
                self._refuse("arguments by ** cannot be checked")
            self.visit(argument.value)
        for child in node.args:
            self.visit(child)

    def _called(self, node: ast.Call) -> None:
        """Judge the call of a method, or of what the config itself makes."""
        if not isinstance(node.func, ast.Attribute):
            reference = reference_of(node.func)
            if reference is None or not self.names.allows(f"@{reference}"):
                self._refuse("it calls something that has no listed name", reference and f"@{reference}")
        for argument in node.keywords:
            if argument.arg is not None:
                self.problems += self.arguments.of_argument(None, argument.arg, argument.value)

    def _subscript(self, node: ast.Subscript) -> None:
        if reference_of(node) is None:
            self.visit(node.value)
            self.visit(node.slice)

    def _binop(self, node: ast.BinOp) -> None:
        if isinstance(node.op, (ast.Pow, ast.LShift)):
            self._refuse("powers and shifts can be made to fill the memory")
        self.visit(node.left)
        self.visit(node.right)

    def _joinedstr(self, node: ast.JoinedStr) -> None:
        if any(isinstance(part, (ast.Call, ast.Attribute)) for part in ast.walk(node)):
            self._refuse("an f-string with more than plain values")
        for child in node.values:
            self.visit(child)

    def _lambda(self, node: ast.Lambda) -> None:
        if not self.names.allows("lambda"):
            self._refuse("a lambda", "lambda")
        arguments = node.args
        if arguments.vararg or arguments.kwarg:
            self._refuse("a lambda of any number of arguments")
        for default in [*arguments.defaults, *filter(None, arguments.kw_defaults)]:
            self.visit(default)
        plain = [parameter.arg for parameter in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        before = len(self.local)
        self._bind(plain)
        self.visit(node.body)
        del self.local[before:]

    def _bind(self, names: list[str]) -> None:
        """Take names for those of what is visited from here on."""
        for name in names:
            if name in GLOBALS or name in self.names.aliases or hasattr(builtins, name) or "__" in name:
                self._refuse(f"{name} is bound anew")
        self.local += names

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        before = len(self.local)
        for generator in node.generators:
            targets = [target for target in ast.walk(generator.target) if not isinstance(target, ast.expr_context)]
            if generator.is_async or not all(isinstance(target, (ast.Name, ast.Tuple, ast.List)) for target in targets):
                self._refuse("a comprehension that binds more than names")
            self.visit(generator.iter)
            self._bind([target.id for target in targets if isinstance(target, ast.Name)])
            for condition in generator.ifs:
                self.visit(condition)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.visit(part)
        del self.local[before:]

    _listcomp = _setcomp = _generatorexp = _dictcomp = _comprehension
