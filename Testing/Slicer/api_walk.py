"""Reads source text and finds what the real application would refuse: names and calls on objects of Qt.

It follows widgets from the .ui files and objects that are made (``qt.QTimer()``) through assignments, loops and calls,
as far as that is plain; what it loses sight of is seen by the running panel, whose objects check themselves.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from host.slicer_api import CLASSES, NAMES, NOT_IN_THE_FILE, members

RETURNS = {
    ("QTableWidget", "item"): "QTableWidgetItem",
    ("QTableWidget", "horizontalHeader"): "QHeaderView",
    ("QTableWidget", "verticalHeader"): "QHeaderView",
    ("QTableWidget", "cellWidget"): "QComboBox",
    ("QTableWidget", "font"): "QFont",
    ("QTableWidget", "fontMetrics"): "QFontMetrics",
    ("QPlainTextEdit", "verticalScrollBar"): "QScrollBar",
    ("QComboBox", "model"): "QStandardItemModel",
    ("QStandardItemModel", "item"): "QStandardItem",
    ("QLabel", "pixmap"): "QPixmap",
    ("QPixmap", "scaledToWidth"): "QPixmap",
    ("QProcess", "readAllStandardOutput"): "QByteArray",
    ("QProcess", "readAllStandardError"): "QByteArray",
    ("QProcessEnvironment", "systemEnvironment"): "QProcessEnvironment",
    ("QUrl", "fromLocalFile"): "QUrl",
}
"""What calls and properties give, where it is used further."""

Types = frozenset
NOTHING: Types = frozenset()


@dataclass
class Findings:
    """What was looked at, and what is wrong with it."""

    wrong: list[str] = field(default_factory=list)
    checked: int = 0


def widgets(folder: Path) -> dict[str, Types]:
    """Name of a widget in .ui files → its classes."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in folder.glob("*.ui"):
        for widget in ElementTree.parse(path).iter("widget"):
            found[widget.get("name", "")].add(widget.get("class", ""))
    return {name: frozenset(kinds) for name, kinds in found.items()}


def walk(sources: dict[str, str], named: dict[str, Types], parameters: dict | None = None) -> Findings:
    """Look through files that belong together.

    Args:
        sources: name of a file → its text.
        named: as `widgets` gives them.
        parameters: (function or class, parameter) → classes, where nothing in the files tells.
    """
    trees = {name: ast.parse(text) for name, text in sources.items()}
    known: dict[tuple[str, str], Types] = dict(parameters or {})
    for _ in range(3):  # what is handed to a function is known after the first look, what it hands on after the next
        for tree in trees.values():
            for scope in _scopes(tree):
                _Scope(scope, named, known).learn()
    findings = Findings()
    for name, tree in trees.items():
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                child.parent = node  # type: ignore[attr-defined]
        for scope in _scopes(tree):
            _Scope(scope, named, known).check(name, findings)
        _check_names(name, tree, findings)
    return findings


def _scopes(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """(class or empty, function) of each function that is not inside another one, and the module's own statements."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((node.name, inner) for inner in node.body if isinstance(inner, ast.FunctionDef))
        elif isinstance(node, ast.FunctionDef):
            yield "", node


class _Scope:
    """A function: what its names are, and what is done with them."""

    def __init__(self, scope: tuple[str, ast.AST], named: dict[str, Types], known: dict[tuple[str, str], Types]):
        self.owner, self.function = scope
        self.named, self.known = named, known
        self.names: dict[str, Types] = {}
        for argument in self.function.args.args:  # type: ignore[attr-defined]
            owner = self.owner if self.function.name == "__init__" else self.function.name  # type: ignore[attr-defined]
            self.names[argument.arg] = known.get((owner, argument.arg), NOTHING)
        for _ in range(2):
            for node in ast.walk(self.function):
                self._assign(node)

    def _assign(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            for element in getattr(node.iter, "elts", ()):
                self._bind(node.target, element)
            if isinstance(node.iter, ast.Name) and isinstance(node.target, ast.Name):
                inner = self.names.get(f"{node.iter.id}[]", NOTHING)
                self.names[node.target.id] = self.names.get(node.target.id, NOTHING) | inner

    def _bind(self, target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._bind(one, other)
        elif isinstance(target, ast.Name):
            self.names[target.id] = self.names.get(target.id, NOTHING) | self.of(value)
            for inner in getattr(value, "elts", ()):  # a tuple of widgets, to be gone through
                self.names[f"{target.id}[]"] = self.names.get(f"{target.id}[]", NOTHING) | self.of(inner)
        elif isinstance(target, ast.Attribute) and _is_self(target.value):
            key = (f"{self.owner}.", target.attr)
            self.known[key] = self.known.get(key, NOTHING) | self.of(value)

    def of(self, node: ast.AST) -> Types:
        """Classes that an expression may be of; none where that is not known."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, NOTHING)
        if isinstance(node, ast.IfExp):
            return self.of(node.body) | self.of(node.orelse)
        if isinstance(node, ast.BoolOp):
            return frozenset().union(*(self.of(value) for value in node.values))
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                if _is_name(called.value, "qt") or _is_name(called.value, "ctk"):
                    return frozenset({called.attr})
                return self._given(called)
            return NOTHING
        if isinstance(node, ast.Attribute):
            if _is_ui(node.value):
                return self.named.get(node.attr, NOTHING)
            if _is_name(node.value, "qt"):
                return frozenset({node.attr})
            if _is_self(node.value):
                return self.known.get((f"{self.owner}.", node.attr), NOTHING)
            return self._given(node)
        return NOTHING

    def _given(self, node: ast.Attribute) -> Types:
        found = (RETURNS.get((kind, node.attr)) for kind in self.of(node.value))
        return frozenset(kind for kind in found if kind)

    def learn(self) -> None:
        """Note what is handed to other functions."""
        for node in ast.walk(self.function):
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute) and self.of(node.func.value):
                    continue  # a call of Qt's own, whatever functions of ours are called
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                for index, argument in enumerate(node.args):
                    kinds = self.of(argument)
                    if kinds:
                        self.known[name, f"#{index}"] = self.known.get((name, f"#{index}"), NOTHING) | kinds
        owner = self.owner if self.function.name == "__init__" else self.function.name  # type: ignore[attr-defined]
        arguments = [a.arg for a in self.function.args.args if a.arg != "self"]  # type: ignore[attr-defined]
        for index, argument in enumerate(arguments):
            handed = self.known.get((owner, f"#{index}"), NOTHING)
            if handed:
                self.known[owner, argument] = self.known.get((owner, argument), NOTHING) | handed

    def check(self, file: str, findings: Findings) -> None:
        """Look at every attribute of what is known."""
        for node in ast.walk(self.function):
            if isinstance(node, ast.Attribute) and not _is_class(node.value):
                for kind in self.of(node.value):
                    if kind in NAMES["qt"] | NAMES["ctk"] | NAMES["slicer"]:
                        findings.checked += 1
                        wrong = _wrong(kind, node)
                        if wrong:
                            findings.wrong.append(f"{file}:{node.lineno}: {ast.unparse(node)}: {wrong}")


def _wrong(kind: str, node: ast.Attribute) -> str:
    """What the real application would say; empty if nothing."""
    name, parent = node.attr, node.parent  # type: ignore[attr-defined]
    if name == "name" or name in NOT_IN_THE_FILE.get(kind, ()):
        return ""
    found = members(kind)
    if found is None:
        base = "QWidget" if kind.endswith(("Widget", "Bar", "Box", "Button", "Edit")) else "QObject"
        found = members(base)
        if found is None or not found.has(name):
            return f"{kind} has no entry: look it up in Slicer, and list it in `NOT_IN_THE_FILE` with the reason"
    if not found.has(name):
        return f"{kind} has no attribute named {name!r}"
    called = isinstance(parent, ast.Call) and parent.func is node
    if isinstance(node.ctx, ast.Store):
        return f"a method of {kind} cannot be set" if name in found.methods and name not in found.properties else ""
    if called and name in found.unknown:
        return "its return is unknown to PythonQt"
    if called and name in found.properties and name not in found.methods:
        return f"a property of {kind} is not callable"
    if called and name == "connect" and isinstance(parent.args[0], ast.Constant):
        signal = str(parent.args[0].value).partition("(")[0]
        return "" if found.has(signal) else f"{kind} has no signal {signal!r}"
    taken = not called and not isinstance(parent, (ast.Call, ast.Tuple, ast.List, ast.keyword, ast.Attribute))
    if taken and name in found.methods and name not in found.properties:
        return f"a method of {kind} is not called"
    return ""


def _check_names(file: str, tree: ast.Module, findings: Findings) -> None:
    """Names of the modules `qt`, `ctk` and `slicer`."""
    import slicer

    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        place, name, owner = f"{file}:{node.lineno}: {ast.unparse(node)}", node.attr, node.value
        if isinstance(owner, ast.Name) and owner.id in ("qt", "ctk"):
            findings.checked += 1
            if name not in NAMES[owner.id]:
                findings.wrong.append(f"{place}: the module has no such class")
        elif _is_name(owner, "slicer"):
            findings.checked += 1
            if name.startswith(("qMRML", "qSlicer")) and name not in NAMES["slicer"]:
                findings.wrong.append(f"{place}: the module has no such class")
            elif not name.startswith("q") and not hasattr(slicer, name):
                findings.wrong.append(f"{place}: the module has no such attribute")
        elif isinstance(owner, ast.Attribute) and _is_name(owner.value, "qt") and owner.attr != "Qt":
            findings.checked += 1
            found = members(owner.attr)
            if name in NOT_IN_THE_FILE.get(owner.attr, ()):
                continue
            if found is None or not found.has(name):
                findings.wrong.append(f"{place}: {owner.attr} has no attribute named {name!r}")
        elif isinstance(owner, ast.Attribute) and _is_name(owner.value, "slicer") and owner.attr == "util":
            findings.checked += 1
            if not hasattr(slicer.util, name):
                findings.wrong.append(f"{place}: slicer.util has no such function")


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_self(node: ast.AST) -> bool:
    return _is_name(node, "self")


def _is_class(node: ast.AST) -> bool:
    """``qt`` or ``qt.QTimer``, whose names are looked at elsewhere."""
    return _is_name(node, "qt") or (isinstance(node, ast.Attribute) and _is_name(node.value, "qt"))


def _is_ui(node: ast.AST) -> bool:
    """``ui``, ``self.ui``, ``panel.ui`` …"""
    return ast.unparse(node).split(".")[-1] in ("ui", "_ui", "cui", "datasetUi", "trainingUi")


__all__ = ["CLASSES", "Findings", "walk", "widgets"]
