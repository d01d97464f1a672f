"""Expressions of a config (``$...``): parsed as MONAI would evaluate them, and never evaluated.

MONAI writes an expression anew before `eval` sees it: ``#`` becomes ``::``, relative ids become absolute ones, and
each ``@id`` becomes ``__local_refs['id']``, inside quotes as well
(`monai.bundle.ReferenceResolver.update_refs_pattern`). What is parsed here is that text, so that nothing can hide in
the difference.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Sequence
from typing import Any

from segpipe.bundle.vet.names import ARGUMENTS, ATTRIBUTES, GLOBALS, METHODS, Names

REFERENCES = "__local_refs"
_REFERENCE = re.compile(r"@(?:\w*)(?:::\w*)*")
_RELATIVE = re.compile(r"(?:@|%)(?:::)+")
_PLAIN = re.compile(r"\w+", re.ASCII)
_LONGEST = 10_000
Problem = tuple[str, str | None]  # why, and the name that --allow may admit

_HARMLESS_NODES = """
    Expression Constant List Tuple Dict Set Starred BinOp UnaryOp BoolOp Compare IfExp Subscript Slice FormattedValue
    JoinedStr operator unaryop boolop cmpop expr_context
"""
_HARMLESS = tuple(getattr(ast, name) for name in _HARMLESS_NODES.split())


def vet_expression(text: str, path: Sequence[str], names: Names) -> tuple[list[str], list[Problem]]:
    """Return the names that an expression uses, and what in it is not admitted.

    Args:
        text: the config's string, from its ``$`` on.
        path: where it stands, the keys from the top.
        names: what is admitted.
    """
    if not text.isascii():
        return [], [("characters beyond ASCII: names that look alike are taken for others", None)]
    if REFERENCES in text or len(text) > _LONGEST:
        return [], [(f"more than {_LONGEST} characters, or a name that MONAI keeps for itself", None)]
    if has_relative_ids(text) and not is_plain_path(path):
        return [], [("a relative id below keys that would become part of the expression", None)]
    source = _as_evaluated(text, path)
    for statements in (_statements(text[1:]), _statements(source)):
        if statements and isinstance(statements[0], (ast.Import, ast.ImportFrom)):
            return _vet_import(statements, names)
    tree = _parsed(source, "eval")
    if tree is None:
        return [], [("it cannot be parsed", None)]
    vetter = _Vetter(names)
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


def has_relative_ids(text: str) -> bool:
    """Return whether MONAI would put the keys above this string into it."""
    return _RELATIVE.search(text.replace("#", "::")) is not None


def is_plain_path(path: Sequence[str]) -> bool:
    """Return whether the keys of a path are letters, digits and underscores alone."""
    return all(_PLAIN.fullmatch(key) for key in path)


def _as_evaluated(text: str, path: Sequence[str]) -> str:
    text = text.replace("#", "::")
    for prefix in sorted(set(_RELATIVE.findall(text)), reverse=True):
        above = path[: max(len(path) - prefix.count("::"), 0)]
        text = text.replace(prefix, prefix[0] + "".join(f"{key}::" for key in above))
    for reference in sorted(_REFERENCE.findall(text), key=len, reverse=True):
        text = text.replace(reference, f"{REFERENCES}['{reference[1:]}']")
    return text[1:]


def _parsed(source: str, mode: str) -> Any:
    try:
        return ast.parse(source, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _statements(source: str) -> list[ast.stmt]:
    tree = _parsed(source, "exec")
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

    def __init__(self, names: Names) -> None:
        self.names = names
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
        if "__" in node.attr or not (node.attr in METHODS | ATTRIBUTES or self.names.allows(f".{node.attr}")):
            self._refuse(f".{node.attr} is not a listed method", None if "__" in node.attr else f".{node.attr}")
        self.visit(node.value)

    def _as_dotted(self, node: ast.expr) -> str | None:
        """``a.b.c`` where ``a`` is a name from outside the expression."""
        if isinstance(node, ast.Name):
            return None if node.id in self.local or node.id == REFERENCES else node.id
        above = self._as_dotted(node.value) if isinstance(node, ast.Attribute) else None
        return f"{above}.{node.attr}" if above is not None and isinstance(node, ast.Attribute) else None

    def _dotted(self, text: str) -> None:
        if "__" in text:
            return self._refuse(f"{text}: names with two underscores reach into Python itself")
        resolved = self.names.dotted(text)
        self.used.append(resolved.name)
        if resolved.only_by_keyword:
            self._refuse(f"{resolved.name} may be used by `_target_` alone, where its arguments can be checked")
        elif not resolved.admitted:
            self._refuse(resolved.reason, resolved.name)

    def _call(self, node: ast.Call) -> None:
        if not isinstance(node.func, ast.Attribute) and self._as_dotted(node.func) is None:
            reference = self._reference(node.func)
            if reference is None or not self.names.allows(reference):
                self._refuse("it calls something that has no listed name", reference)
        for argument in node.keywords:
            if argument.arg is None:
                self._refuse("arguments by ** cannot be checked")
            elif argument.arg in ARGUMENTS and not (
                isinstance(argument.value, ast.Constant) and is_admitted_argument(argument.arg, argument.value.value)
            ):
                self._refuse(f"the argument {argument.arg} may be {ARGUMENTS[argument.arg]}")
            self.visit(argument.value)
        for child in (node.func, *node.args):
            self.visit(child)

    def _reference(self, node: ast.expr) -> str | None:
        """``@id``, from what MONAI makes of it."""
        if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == REFERENCES):
            return None
        return f"@{node.slice.value!s}" if isinstance(node.slice, ast.Constant) else None

    def _subscript(self, node: ast.Subscript) -> None:
        if self._reference(node) is None:
            self.visit(node.value)
            self.visit(node.slice)

    def _binop(self, node: ast.BinOp) -> None:
        if isinstance(node.op, (ast.Pow, ast.LShift)):
            self._refuse("powers and shifts can be made to fill the memory")
        self.visit(node.left)
        self.visit(node.right)

    def _joinedstr(self, node: ast.JoinedStr) -> None:
        if any(isinstance(each, (ast.Call, ast.Attribute)) for each in ast.walk(node)):
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
        plain = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        self._within(plain, [node.body])

    def _within(self, bound: list[str], body: list[ast.expr]) -> None:
        """Visit what is evaluated where some more names are bound."""
        for name in bound:
            if name in GLOBALS or name in self.names.aliases or hasattr(builtins, name) or "__" in name:
                self._refuse(f"{name} is bound anew")
        before = len(self.local)
        self.local += bound
        for node in body:
            self.visit(node)
        del self.local[before:]

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        bound: list[str] = []
        for generator in node.generators:
            targets = [each for each in ast.walk(generator.target) if not isinstance(each, ast.expr_context)]
            if generator.is_async or not all(isinstance(each, (ast.Name, ast.Tuple, ast.List)) for each in targets):
                self._refuse("a comprehension that binds more than names")
            self._within(list(bound), [generator.iter])
            bound += [each.id for each in targets if isinstance(each, ast.Name)]
            self._within(list(bound), generator.ifs)
        self._within(bound, [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])

    _listcomp = _setcomp = _generatorexp = _dictcomp = _comprehension


def is_admitted_argument(name: str, value: object) -> bool:
    """Whether an argument that could name code, or open a way to it, has one of its listed values."""
    return any(value is each or (isinstance(each, str) and value == each) for each in ARGUMENTS[name])
