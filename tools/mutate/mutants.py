"""Mutants of a C++ header: every one changes one operator, number, condition or call.

The header is parsed with tree-sitter, so neither a compiler nor an included file is needed. All mutants are written
into one copy of the header (mutant schemata), each behind a switch that is read at run time: `a + b` becomes
`(EXODUS_MUTANT(7) ? (a - b) : (a + b))`. switch.h has the macro. Text of other mutants is in the last branch only,
since no two are on at once; so the copy grows with their number times the depth of the expressions.

Left alone are numbers of enumerators and template arguments, static assertions, assembler, and code that only a
compiler for a GPU sees.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import tree_sitter
import tree_sitter_cpp
from tree_sitter import Node

_PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))

#: Expands to specifiers that the grammar does not know; blanked with as many characters.
_MACRO = b"EXODUS_HOST_DEVICE"

OPERATORS = {
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "%": ("/",),
    "<": ("<=", ">="),
    "<=": ("<", ">"),
    ">": (">=", "<="),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "&&": ("||",),
    "||": ("&&",),
    "<<": (">>",),
    ">>": ("<<",),
    "&": ("|",),
    "|": ("&",),
    "+=": ("-=",),
    "-=": ("+=",),
}
#: Functions of a number that are replaced by that number, their first argument.
TO_ARGUMENT = ("as_stored", "at_least", "floor", "magnitude", "reciprocal", "unless_faded")
#: multiply_add(a, b, c) is a b + c.
FUSED: tuple[Callable[[str, str, str], str], ...] = (
    lambda a, b, c: f"multiply_add(-({a}), {b}, {c})",
    lambda a, b, c: f"({a}) * ({b})",
    lambda a, b, c: c,
)
_ONLY_ON_A_GPU = ("__CUDA_ARCH__", "__CUDACC__")
_LEFT_ALONE = (
    "enumerator",
    "gnu_asm_expression",
    "preproc_def",
    "preproc_function_def",
    "preproc_include",
    "static_assert_declaration",
    "template_argument_list",
    "template_parameter_list",
)
_BODIES = (
    "case_statement",
    "compound_statement",
    "declaration_list",
    "field_declaration_list",
    "if_statement",
    "preproc_else",
    "preproc_if",
    "translation_unit",
)
_CONDITIONS = ("identifier", "call_expression", "field_expression")
_SHORT = 24  # characters of an expression that does not say where it stands


class ParseError(Exception):
    """The grammar does not understand a header."""


@dataclass(frozen=True)
class Mutant:
    """One change of one place. `before` and `after` are the expression around it, in the source and changed."""

    file: str
    function: str
    before: str
    after: str
    occurrence: int  # from 1, among equal changes of one function
    line: int
    number: int  # what EXODUS_MUTANT is for it, from 1

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Key that stays as long as the function keeps the expression, whatever stands around that."""
        return (self.file, self.function, self.before, self.after, self.occurrence)

    def __str__(self) -> str:
        which = f" (occurrence {self.occurrence})" if self.occurrence > 1 else ""
        return f"{self.file}:{self.line} {self.function}: {self.before} -> {self.after}{which}"


def _text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def _field(node: Node, name: str) -> Node:
    """A part that every node of its kind has."""
    found = node.child_by_field_name(name)
    if found is None:
        raise ParseError(f"line {node.start_point.row + 1}: a {node.type} without its {name}: {_text(node)[:60]!r}")
    return found


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"//[^\n]*", "", text)).strip()


def _changed_numbers(literal: str) -> tuple[str, ...]:
    """0 becomes 1, another floating-point number c 2 c, an integer c + 1 and c - 1; -c also becomes c."""
    unsigned = literal.removeprefix("-")
    positive = (unsigned,) if literal != unsigned else ()
    match = re.fullmatch(r"(0x[0-9a-f]+|\d+)(u?)", unsigned)
    if match:
        value, suffix = int(match[1], 0) * (-1 if positive else 1), match[2]
        style = "#x" if match[1].startswith("0x") else "d"
        # 0 - 1 is left out: of an unsigned number it is none, and as a sum or a value 1 is as far from 0.
        return tuple(f"{v:{style}}{suffix}" for v in (value + 1, value - 1) if value != 0 or v > 0) + positive
    match = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)(f?)", unsigned)
    if match is None:
        raise ParseError(f"a number must be decimal or hexadecimal, got {literal}")
    suffix = match[2]
    return (f"1.0{suffix}",) if float(match[1]) == 0 else (f"(2 * {literal})", *positive)


def _arguments(call: Node) -> list[str]:
    listed = _field(call, "arguments").named_children
    return [_one_line(_text(argument)) for argument in listed if argument.type != "comment"]


def _callee(call: Node) -> str:
    function = _field(call, "function")
    return _text(_field(function, "name") if function.type == "template_function" else function)


def _is_condition(node: Node) -> bool:
    """True for a name or a call that decides an `if` or `?:` without an operator."""
    parent = node.parent
    if parent is None or node.type not in _CONDITIONS:
        return False
    if parent.type == "condition_clause":
        return parent.parent is not None and parent.parent.type == "if_statement"
    return parent.type == "conditional_expression" and parent.child_by_field_name("condition") == node


def _alternatives(node: Node) -> Iterator[str]:
    """Replacements of an expression."""
    if node.type in ("binary_expression", "assignment_expression"):
        left, operator, right = (_one_line(_text(_field(node, name))) for name in ("left", "operator", "right"))
        for other in OPERATORS.get(operator, ()):
            yield f"{left} {other} {right}"
    elif node.type == "unary_expression":
        if _text(node)[0] in "-!":
            yield _one_line(_text(_field(node, "argument")))
    elif node.type == "number_literal":
        yield from _changed_numbers(_text(node))
    elif node.type in ("true", "false"):
        yield "false" if node.type == "true" else "true"
    elif node.type == "call_expression":
        name, arguments = _callee(node), _arguments(node)
        if name in TO_ARGUMENT:
            yield arguments[0]
        elif name == "multiply_add":
            a, b, c = arguments
            # Where a has a sign, another mutant drops it.
            for change in FUSED[1:] if a.startswith("-") else FUSED:
                yield change(a, b, c)
    if _is_condition(node):
        yield f"!{_one_line(_text(node))}"


def _only_on_a_gpu(node: Node) -> bool:
    condition = node.child_by_field_name("condition")
    return node.type == "preproc_if" and condition is not None and any(m in _text(condition) for m in _ONLY_ON_A_GPU)


def _children(node: Node) -> list[Node]:
    """The children in which mutants may be."""
    if node.type in _LEFT_ALONE:
        return []
    if _only_on_a_gpu(node):
        alternative = node.child_by_field_name("alternative")
        return [alternative] if alternative is not None else []
    return list(node.children)


def _shown(node: Node, after: str) -> tuple[str, str]:
    """The expression around a place, long enough to be found again, and the same with the change."""
    shown = node
    while shown.parent is not None and (len(_text(shown)) < _SHORT or shown.type == "argument_list"):
        if shown.parent.type in _BODIES:
            break
        shown = shown.parent
    text = _text(shown).encode()
    start, end = node.start_byte - shown.start_byte, node.end_byte - shown.start_byte
    changed = text[:start] + after.encode() + text[end:]
    return _one_line(text.decode()).rstrip(";"), _one_line(changed.decode()).rstrip(";")


def _declarator(node: Node) -> Node | None:
    """The declarator of a function, below the references and pointers that it returns."""
    found = node.child_by_field_name("declarator")
    while found is not None and found.type != "function_declarator":
        found = next((c for c in found.children if c.type.endswith("declarator")), None)
    return found


def _scopes(root: Node) -> dict[int, str]:
    """The name of every function and constant by the id of its node; overloads with their first parameter."""
    names: dict[int, tuple[str, str]] = {}

    def visit(node: Node, prefix: str) -> None:
        if node.type == "struct_specifier":
            name = node.child_by_field_name("name")
            prefix = f"{_one_line(_text(name))}::" if name is not None else prefix
        elif node.type == "function_definition":
            declarator = _declarator(node)
            if declarator is not None:
                name, parameters = (_field(declarator, field) for field in ("declarator", "parameters"))
                first = [_one_line(_text(parameter)) for parameter in parameters.named_children[:1]]
                names[node.id] = (f"{prefix}{_one_line(_text(name))}", f"({''.join(first)})")
        elif node.type in ("declaration", "field_declaration") and node.id not in names:
            declared = node.child_by_field_name("declarator")
            if declared is not None and declared.type == "init_declarator":
                declared = declared.child_by_field_name("declarator")
            if declared is not None:
                names[node.id] = (f"{prefix}{_one_line(_text(declared))}", "")
        for child in node.children:
            visit(child, prefix)

    visit(root, "")
    often = Counter(name for name, parameters in names.values() if parameters)
    return {
        node: name + (parameters if parameters and often[name] > 1 else "")
        for node, (name, parameters) in names.items()
    }


def parse(text: str, name: str) -> Node:
    """The syntax tree of a header. Raises ParseError: the grammar does not understand all of it."""
    tree = _PARSER.parse(text.encode().replace(_MACRO, b"inline".ljust(len(_MACRO))))

    def wrong(node: Node) -> Node | None:
        if node.type == "ERROR" or node.is_missing:
            return node
        return next((found for child in node.children if child.has_error and (found := wrong(child))), None)

    if tree.root_node.has_error:
        where = wrong(tree.root_node) or tree.root_node
        raise ParseError(f"{name}:{where.start_point.row + 1}: not understood: {_text(where)[:60]!r}")
    return tree.root_node


@dataclass(frozen=True)
class Header:
    """A header, its mutants, and where they are."""

    name: str
    text: str
    mutants: tuple[Mutant, ...]
    places: dict[int, tuple[tuple[int, str], ...]]  # by the id of a node: the index of a mutant, what stands in place
    root: Node

    def numbered(self, first: int) -> Header:
        """The same with numbers from `first` on."""
        return replace(self, mutants=tuple(replace(m, number=first + i) for i, m in enumerate(self.mutants)))

    def guarded(self, wanted: frozenset[int]) -> str:
        """The header with the mutants of these numbers, each behind its switch."""

        source = self.text.encode()

        def emit(node: Node) -> str:
            at, parts = node.start_byte, []
            for child in _children(node):
                parts += [source[at : child.start_byte].decode(), emit(child)]
                at = child.end_byte
            parts.append(source[at : node.end_byte].decode())
            text = "".join(parts)
            switches = ""
            for index, alternative in self.places.get(node.id, ()):
                number = self.mutants[index].number
                if number in wanted:
                    switches += f"EXODUS_MUTANT({number}) ? ({alternative}) : "
            return f"({switches}({text}))" if switches else text

        # The root begins at its first token.
        text = source[: self.root.start_byte].decode() + emit(self.root) + source[self.root.end_byte :].decode()
        return self._without_constants(text)

    def _without_constants(self, text: str) -> str:
        """A guarded header whose constants are variables where they have mutants, or may refer to one that has: what a
        switch decides is not known to the compiler."""
        local = r"^( +)constexpr (\S+) (\w+) = (.*EXODUS_MUTANT)"
        text = re.sub(local, r"\1const \2 \3 = \4", text, flags=re.MULTILINE)

        def variable(match: re.Match[str]) -> str:
            static, kind, name, guarded = match.groups(default="")
            original = re.search(rf"constexpr {kind} {name} = (.*);", self.text)
            assert original is not None
            return (
                f"{static}inline {kind} {name} = {original[1]}; {static}inline const bool {name}_is_set = "
                f"exodus_mutants::keep_up_to_date([] {{ {name} = {guarded}; }});"
            )

        member_or_global = r"^(  static )?constexpr (\w+) (\w+) = (.*EXODUS_MUTANT.*);"
        text = re.sub(member_or_global, variable, text, flags=re.MULTILINE)
        return re.sub(r"^constexpr auto (\w+) = ", r"const auto& \1 = ", text, flags=re.MULTILINE)


def read(path: Path) -> Header:
    """The mutants of a header, numbered from 1. Raises ParseError."""
    text = path.read_text()
    root = parse(text, path.name)
    scopes = _scopes(root)
    mutants: list[Mutant] = []
    places: dict[int, tuple[tuple[int, str], ...]] = {}
    counts: Counter[tuple[str, str, str]] = Counter()

    def visit(node: Node, function: str) -> None:
        if node.type == "function_definition" or function == "":
            function = scopes.get(node.id, function)
        own = []
        for after in _alternatives(node):
            shown = _shown(node, after)
            counts[function, *shown] += 1
            line = node.start_point.row + 1
            own.append((len(mutants), after))
            mutants.append(Mutant(path.name, function, *shown, counts[function, *shown], line, len(mutants) + 1))
        if own:
            places[node.id] = tuple(own)
        for child in _children(node):
            visit(child, function)

    visit(root, "")
    return Header(path.name, text, tuple(mutants), places, root)


def read_folder(folder: Path) -> list[Header]:
    """All headers of a folder, their mutants numbered from 1 through all of them. Raises ParseError."""
    headers, first = [], 1
    for path in sorted(folder.glob("*.h")):
        header = read(path).numbered(first)
        first += len(header.mutants)
        headers.append(header)
    return headers
