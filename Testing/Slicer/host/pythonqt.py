"""PySide6 dressed as PythonQt, the Python binding of Qt inside Slicer.

The two differ where it hurts: in PythonQt a Qt property is an attribute (``button.text``), in PySide6 a method. Code
that only works in PySide6 fails in Slicer, and the other way round, so every object that Slicer-side code sees here is
a proxy that asks first what the real application has (`slicer_api`). Nothing is listed by hand, so nothing can be
forgotten.
"""

from __future__ import annotations

import ctypes
import enum
import inspect
import sys
import traceback
import types
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from . import slicer_api

ERRORS: list[str] = []
"""Tracebacks of exceptions in slots. PythonQt prints them and goes on; tests fail on them (see `conftest.py`)."""

MODULES = (QtCore, QtGui, QtWidgets)
_QOBJECT = QtCore.QObject


def spare_references() -> None:
    """Keep Python alive although PySide6 6.12 gives back references to None and small values that it never took.

    Each empty property or item read through PySide6 takes one; a session of tests uses up those of None, and Python
    ends with “deallocating None”. From Python 3.12 on such objects are immortal, and nothing needs to be done.
    """
    if sys.version_info < (3, 12):
        for value in (None, True, False, *range(-5, 257)):
            ctypes.c_ssize_t.from_address(id(value)).value += 10**9


def unwrap(value: Any) -> Any:
    """The PySide6 object behind a proxy; containers are looked through, anything else stays as it is."""
    if isinstance(value, (Proxy, ValueProxy)):
        return object.__getattribute__(value, "_target")
    if isinstance(value, ProxyClass):
        return value.target
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(v) for v in value)
    return value


def wrap(value: Any) -> Any:
    """What PythonQt would show: objects of Qt get a proxy, lists are looked through, enums and Python's own stay."""
    if isinstance(value, _QOBJECT) and not isinstance(value, Proxy):
        return Proxy(value)
    if _is_qt_value(value):
        return ValueProxy(value)
    if isinstance(value, list):
        return [wrap(v) for v in value]
    return value


def _is_qt_value(value: Any) -> bool:
    """An object of Qt that is no QObject: a color, a cell of a table."""
    kind = type(value)
    return kind.__module__.startswith("PySide6.Qt") and not isinstance(value, (enum.Enum, type)) and not callable(value)


def accepted_arguments(function: Any) -> int | None:
    """How many positional arguments a slot takes, or None for any number (PythonQt passes no more than that)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def slot(function: Any, carried: Any = None, count: int | None = None) -> Any:
    """A PySide6 slot that passes only the arguments `function` takes, and records exceptions instead of raising them.

    Args:
        carried: gives the argument of a signal that is emitted without it (see `SignalProxy`).
        count: how many arguments the signal has; PySide6 looks at the slot's signature, so it must not be open.
    """
    limit = accepted_arguments(function)

    def call(*arguments: Any) -> None:
        try:
            if carried is not None:
                arguments = (carried(),)
            function(*[wrap(a) for a in (arguments if limit is None else arguments[:limit])])
        except Exception:
            ERRORS.append(traceback.format_exc())
            traceback.print_exc(file=sys.stderr)

    fixed = {0: lambda: call(), 1: lambda a: call(a), 2: lambda a, b: call(a, b), 3: lambda a, b, c: call(a, b, c)}
    return call if count is None else fixed[0 if carried is not None else count]


class SignalProxy:
    """``widget.clicked``: connects like PythonQt's.

    A signal that carries a Python object is emitted without it, since PySide6 miscounts references to such arguments;
    the widget's `CARRIED` says how to get the object when a slot runs.
    """

    def __init__(self, owner: Proxy, name: str, signal: Any) -> None:
        self._owner, self._name, self._signal = owner, name, signal

    def connect(self, function: Any) -> bool:
        target = unwrap(self._owner)
        carried = getattr(target, "CARRIED", {}).get(self._name)
        made = slot(function, (lambda: carried(target)) if carried else None, self._argument_count())
        _connections(self._owner).append((self._name, function, made))
        self._signal.connect(made)
        return True

    def _argument_count(self) -> int:
        """Of the longest signature that the signal has."""
        meta = unwrap(self._owner).metaObject()
        methods = [meta.method(index) for index in range(meta.methodCount())]
        return max(m.parameterCount() for m in methods if bytes(m.name()).decode() == self._name)

    def disconnect(self, function: Any) -> bool:
        held = _connections(self._owner)
        for entry in held:
            if entry[0] == self._name and entry[1] == function:
                self._signal.disconnect(entry[2])
                held.remove(entry)
                return True
        return False


def _connections(owner: Proxy) -> list[tuple[str, Any, Any]]:
    """Slots are kept on the Qt object, which lives as long as they are needed."""
    target = unwrap(owner)
    if not hasattr(target, "_slicer_host_connections"):
        target._slicer_host_connections = []
    return target._slicer_host_connections


def _looked_up(owner: Any, target: Any, name: str) -> Any:
    """An attribute as PythonQt shows it: a property's value, or a method that waits for its call."""
    found = slicer_api.check(type(target), name)
    meta = target.metaObject() if isinstance(target, _QOBJECT) else None
    if meta is not None and meta.indexOfProperty(name) >= 0 and (found is None or name not in found.methods):
        return wrap(target.property(name))
    value = getattr(target, name)
    if isinstance(value, QtCore.SignalInstance):
        return SignalProxy(owner, name, value)
    if found is not None and name in found.methods:
        return Method(value, type(target).__name__, name in found.unknown)
    if callable(value) and not isinstance(value, type):
        return Method(value, type(target).__name__)
    return wrap(value)


class Method:
    """A method of an object of Qt. Taken for a value, it would be true in Slicer, whatever it returns."""

    def __init__(self, function: Any, owner: str, unknown: bool = False) -> None:
        self._function, self._owner, self._unknown = function, owner, unknown
        self.__name__ = getattr(function, "__name__", "method")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        converted = [slot(a) if isinstance(a, (types.FunctionType, types.MethodType)) else unwrap(a) for a in arguments]
        returned = self._function(*converted, **{k: unwrap(v) for k, v in named.items()})
        if self._owner == "QFileDialog" and isinstance(returned, tuple):
            returned = returned[0]  # PySide6 returns what C++ writes into a pointer (the chosen filter) as well
        if self._unknown:
            raise ValueError(
                f"Called {self.__name__}() of {self._owner}, return type {type(returned).__name__!r} is ignored because"
                " it is unknown to PythonQt. Probably you should register it using PythonQt::registerClass()."
            )
        return wrap(returned)

    def __bool__(self) -> bool:
        raise TypeError(f"{self._owner}.{self.__name__} is a method: call it")

    def __format__(self, _specification: str) -> str:
        raise TypeError(f"{self._owner}.{self.__name__} is a method: call it")


class ValueProxy:
    """An object of Qt that is no QObject, as PythonQt shows it."""

    def __init__(self, target: Any) -> None:
        object.__setattr__(self, "_target", target)

    def __getattr__(self, name: str) -> Any:
        return _looked_up(self, object.__getattribute__(self, "_target"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"Attribute {name!r} does not exist and creation of new attributes on C++ objects is not allowed"
        )

    def __eq__(self, other: object) -> bool:
        return bool(unwrap(self) == unwrap(other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(unwrap(self))


class Proxy:
    """A QObject as PythonQt shows it."""

    def __init__(self, target: QtCore.QObject) -> None:
        object.__setattr__(self, "_target", target)

    def __getattr__(self, name: str) -> Any:
        target = object.__getattribute__(self, "_target")
        if name == "name" and target.metaObject().indexOfProperty(name) < 0:
            return target.objectName()
        return _looked_up(self, target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        target = object.__getattribute__(self, "_target")
        if name == "name" and target.metaObject().indexOfProperty(name) < 0:
            name = "objectName"
        kind, index = type(target).__name__, target.metaObject().indexOfProperty(name)
        try:
            found = slicer_api.check(type(target), name)
        except AttributeError as error:
            raise AttributeError(
                f"Attribute {name!r} does not exist and creation of new attributes on C++ objects is not allowed"
            ) from error
        if index < 0 or (found is not None and name in found.methods):
            raise AttributeError(f"Slot {name!r} can not be overwritten on {kind} object")
        if not target.metaObject().property(index).isWritable():
            raise AttributeError(f"Property {name!r} of {kind} object is not writable")
        if isinstance(value, Method) or not target.setProperty(name, unwrap(value)):
            raise ValueError(f"Property {name!r} of {kind} does not accept an object of type {type(value).__name__}")

    def connect(self, signal: str, function: Any) -> bool:
        """``button.connect("clicked(bool)", f)``; an unknown signal is an error here, a warning in Slicer."""
        return self._signal(signal).connect(function)

    def disconnect(self, signal: str, function: Any) -> bool:
        return self._signal(signal).disconnect(function)

    def _signal(self, signature: str) -> SignalProxy:
        target = unwrap(self)
        normal = bytes(QtCore.QMetaObject.normalizedSignature(signature)).decode()
        if normal not in getattr(target, "SIGNALS", ()) and target.metaObject().indexOfSignal(normal) < 0:
            raise ValueError(f"{target.metaObject().className()} has no signal {signature!r}")
        name = signature.split("(")[0]
        return SignalProxy(self, name, getattr(target, name))

    def className(self) -> str:
        return unwrap(self).metaObject().className()

    def findChild(self, kind: Any, name: str = "") -> Any:
        return wrap(unwrap(self).findChild(unwrap(kind), name))

    def __eq__(self, other: object) -> bool:
        return unwrap(self) is unwrap(other) or unwrap(self) == unwrap(other)

    def __hash__(self) -> int:
        return hash(unwrap(self))

    def __repr__(self) -> str:
        target = unwrap(self)
        return f"{target.metaObject().className()} ({target.objectName()!r})"


class ProxyClass:
    """``qt.QPushButton``: makes proxied objects, answers isinstance, has enumeration values and static methods."""

    def __init__(self, target: type) -> None:
        self.target = target
        self.__name__ = target.__name__

    def __call__(self, *arguments: Any) -> Any:
        return wrap(self.target(*[unwrap(a) for a in arguments]))

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(unwrap(instance), self.target)

    def __getattr__(self, name: str) -> Any:
        slicer_api.check(self.target, name)
        value = getattr(self.target, name)
        return Method(value, self.__name__) if callable(value) and not isinstance(value, type) else value


class ShownExactly(QtWidgets.QMessageBox):
    """Message boxes never block here; code under test asks through `slicer.util`, which tests answer."""

    def exec(self) -> int:  # pragma: no cover - only reached when code under test is wrong
        raise AssertionError(f"A modal message box would block: {self.text()}")


def make_qt_module(ui_loader: type) -> types.ModuleType:
    """The module that ``import qt`` gives."""
    module = types.ModuleType("qt", "Stand-in for Slicer's qt module, on PySide6")

    def lookup(name: str) -> Any:
        if name not in slicer_api.NAMES["qt"]:
            raise AttributeError(f"module 'qt' has no attribute {name!r}")
        if name == "QUiLoader":
            return ui_loader
        if name == "QMessageBox":
            return ProxyClass(ShownExactly)
        for source in MODULES:
            if hasattr(source, name):
                value = getattr(source, name)
                made = ProxyClass(value) if isinstance(value, type) and value is not QtCore.Qt else value
                setattr(module, name, made)
                return made
        raise AttributeError(f"module 'qt' has no attribute {name!r}")

    module.__getattr__ = lookup  # type: ignore[attr-defined]
    return module


__all__ = ["ERRORS", "Proxy", "ProxyClass", "make_qt_module", "slot", "unwrap", "wrap", "QtUiTools"]
