"""A small Slicer for tests: real MRML (slicer-core), real Qt widgets (PySide6, offscreen), stand-ins for the rest.

`start()` once, then ``import slicer, qt, ctk`` work as inside Slicer for everything the panels use. What is real: the
scene and all nodes, segmentations, terminologies, ``slicer.util``, Qt with its event loop and processes, the .ui files.
What stands in, each in a file of its own:

- `pythonqt`: PySide6 behaves like PythonQt (properties are attributes, slots get only the arguments they take);
- `widgets`: CTK and MRML widgets named in the .ui files;
- `application`: ``slicer.app``, ``slicer.modules``, the module logics, ``PythonSlicer`` on the PATH;
- `dicom`: ``slicer.dicomDatabase``;
- `scripted_module`: base classes of scripted modules;
- `parameter_node`: the typed parameter node and its connections to widgets.

`test_host.py` holds it against what was measured in the real application. Inside Slicer `start()` does nothing.
"""

from __future__ import annotations

import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
MODULE_FOLDER = ROOT / "SpineSegAI"


class MissingHostPackage(RuntimeError):
    """PySide6 or slicer-core is not there, or cannot load; the message says what to install."""


def _load_error(error: ImportError) -> str:
    text = str(error)
    if "slicer" in text and "No module" in text:
        return "Panel tests need slicer-core: pip install slicer-core"
    if "PySide6" in text and "No module" in text:
        return "Panel tests need PySide6: pip install PySide6-Essentials"
    library = text.split(":")[0]
    return (
        f"PySide6 cannot load, because the system library {library} is missing. On Debian or Ubuntu: "
        "apt-get install libegl1 libgl1 libxkbcommon0 libdbus-1-3 libfontconfig1 libglib2.0-0"
    )


def start(module_folder: str | Path = MODULE_FOLDER, library_folder: str | Path = ROOT) -> None:
    """Make this process look like Slicer; does nothing the second time, or inside Slicer.

    Args:
        module_folder: where SpineSegAI.py lies.
        library_folder: where SpineSegAILib lies.

    Raises:
        MissingHostPackage: a package or system library is missing; the message names it.
    """
    if "qt" in sys.modules:
        return
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ.setdefault("QT_LOGGING_RULES", "qt.qpa.*=false")
    try:
        import slicer
        from PySide6 import QtWidgets

        from . import application, parameter_node, pythonqt, scripted_module, widgets
    except ImportError as error:
        raise MissingHostPackage(_load_error(error)) from error

    pythonqt.spare_references()
    start.application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    start.application.setQuitOnLastWindowClosed(False)
    sys.modules["qt"] = pythonqt.make_qt_module(widgets.UiLoader)
    ctk = types.ModuleType("ctk", "Stand-in for Slicer's ctk module")
    for name, kind in widgets.CUSTOM_WIDGETS.items():
        if name.startswith("ctk"):
            setattr(ctk, name, pythonqt.ProxyClass(kind))
    sys.modules["ctk"] = ctk
    application.start_application()

    i18n = types.ModuleType("slicer.i18n")
    i18n.tr = lambda text: text
    i18n.translate = lambda context, text: text
    wrapper = types.ModuleType("slicer.parameterNodeWrapper")
    for name in ("parameterNodeWrapper", "Choice", "WithinRange", "Default", "Decimals", "SingleStep"):
        setattr(wrapper, name, getattr(parameter_node, name))
    for name, module in (
        ("i18n", i18n), ("parameterNodeWrapper", wrapper), ("ScriptedLoadableModule", scripted_module),
    ):  # fmt: skip
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)
    for folder in (str(library_folder), str(module_folder)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    scripted_module.load("SpineSegAI", os.path.join(module_folder, "SpineSegAI.py"))


def release(widget: Any) -> None:
    """A module's widget no longer follows the scene, as if it were destroyed; each that is left would slow down every
    later change of the scene. Inside Slicer this does nothing."""
    if "host.widgets" in sys.modules:
        from . import pythonqt, widgets

        for selector in pythonqt.unwrap(widget.parent).findChildren(widgets.qMRMLNodeComboBox):
            selector._unobserve()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Run the event loop until `condition` holds; False if it does not within the time, or a slot raised."""
    import slicer

    errors = sys.modules["host.pythonqt"].ERRORS if "host.pythonqt" in sys.modules else []
    end = time.monotonic() + seconds
    while not condition():
        if errors or time.monotonic() > end:
            return False
        slicer.app.processEvents()
        time.sleep(0.002)
    return True
