"""PySide6 dressed as PythonQt, the Python binding of Qt inside Slicer.

The two differ where it hurts: in PythonQt a Qt property is an attribute (``button.text``), in PySide6 a method. Code
that only works in PySide6 fails in Slicer, and the other way round, so every object that Slicer-side code sees here is
a proxy that asks the widget's meta-object what is a property. Nothing is listed by hand, so nothing can be forgotten.
"""

from __future__ import annotations

import ctypes
import inspect
import sys
import traceback
import types
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

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
    if isinstance(value, Proxy):
        return object.__getattribute__(value, "_target")
    if isinstance(value, ProxyClass):
        return value.target
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(v) for v in value)
    return value


def wrap(value: Any) -> Any:
    """What PythonQt would show: QObjects get a proxy, lists are looked through, enums and values stay."""
    if isinstance(value, _QOBJECT) and not isinstance(value, Proxy):
        return Proxy(value)
    if isinstance(value, list):
        return [wrap(v) for v in value]
    return value


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


class Proxy:
    """A QObject as PythonQt shows it."""

    def __init__(self, target: QtCore.QObject) -> None:
        object.__setattr__(self, "_target", target)

    def __getattr__(self, name: str) -> Any:
        target = object.__getattribute__(self, "_target")
        if name == "name":
            return target.objectName()
        meta = target.metaObject()
        if meta.indexOfProperty(name) >= 0:
            return wrap(target.property(name))
        value = getattr(target, name)  # AttributeError says what is missing
        if isinstance(value, QtCore.SignalInstance):
            return SignalProxy(self, name, value)
        if callable(value) and not isinstance(value, type):
            return _method(value)
        return wrap(value)

    def __setattr__(self, name: str, value: Any) -> None:
        target = object.__getattribute__(self, "_target")
        if name == "name":
            name = "objectName"
        index = target.metaObject().indexOfProperty(name)
        if index >= 0:
            if not target.metaObject().property(index).isWritable():
                raise AttributeError(f"Property {name!r} of {target.metaObject().className()} object is not writable")
            if not target.setProperty(name, unwrap(value)):
                raise ValueError(f"{target.metaObject().className()}.{name} cannot be set to {value!r}")
            return
        if hasattr(target, name):
            raise AttributeError(f"{target.metaObject().className()}.{name} is a method, not a property")
        setattr(target, name, value)

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


def _method(function: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        converted = [slot(a) if isinstance(a, (types.FunctionType, types.MethodType)) else unwrap(a) for a in arguments]
        return wrap(function(*converted, **{k: unwrap(v) for k, v in named.items()}))

    call.__name__ = getattr(function, "__name__", "method")
    return call


class ProxyClass:
    """``qt.QPushButton``: makes proxied objects, answers isinstance, passes on enums and static methods."""

    def __init__(self, target: type) -> None:
        self.target = target
        self.__name__ = target.__name__

    def __call__(self, *arguments: Any) -> Any:
        return wrap(self.target(*[unwrap(a) for a in arguments]))

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(unwrap(instance), self.target)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        return _method(value) if callable(value) and not isinstance(value, type) else value


class ShownExactly(QtWidgets.QMessageBox):
    """Message boxes never block here; code under test asks through `slicer.util`, which tests answer."""

    def exec(self) -> int:  # pragma: no cover - only reached when code under test is wrong
        raise AssertionError(f"A modal message box would block: {self.text()}")


def make_qt_module(ui_loader: type) -> types.ModuleType:
    """The module that ``import qt`` gives."""
    module = types.ModuleType("qt", "Stand-in for Slicer's qt module, on PySide6")

    def lookup(name: str) -> Any:
        if name == "QUiLoader":
            return ui_loader
        if name == "QMessageBox":
            return ProxyClass(ShownExactly)
        for source in MODULES:
            if hasattr(source, name):
                value = getattr(source, name)
                is_object = isinstance(value, type) and issubclass(value, _QOBJECT)
                made = ProxyClass(value) if is_object else value
                setattr(module, name, made)
                return made
        raise AttributeError(f"module 'qt' has no attribute {name!r}")

    module.__getattr__ = lookup  # type: ignore[attr-defined]
    return module


__all__ = ["ERRORS", "Proxy", "ProxyClass", "make_qt_module", "slot", "unwrap", "wrap", "QtUiTools"]
