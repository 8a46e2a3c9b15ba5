"""Faces of packages that cost nothing until they are used (PEP 562).

A package's ``__init__`` lists what it offers once, for type checkers and for `lazy_exports` alike:

    if TYPE_CHECKING:
        from .reading import read_image
    else:
        __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_exports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, from the imports under its ``if TYPE_CHECKING``.

    A name's module is imported when the name is first asked for.

    Args:
        package: the package's ``__name__``.
        file: its ``__file__``.
    """
    home = {
        alias.asname or alias.name: (f"{'.' * node.level}{node.module or ''}", alias.name)
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = home[name]
        return getattr(import_module(module, package), original)

    return get, lambda: sorted(home), sorted(home)
