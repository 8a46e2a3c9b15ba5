"""Whether the panel can be tested here at all."""

import host


def test_the_host_can_start():
    """Fails with the name of the package or system library that is missing."""
    host.start()


def test_a_missing_system_library_is_named():
    text = host._load_error(ImportError("libEGL.so.1: cannot open shared object file: No such file or directory"))
    assert "libEGL.so.1" in text and "apt-get install" in text


def test_a_missing_package_is_named():
    assert "slicer-core" in host._load_error(ImportError("No module named 'slicer'"))
    assert "PySide6-Essentials" in host._load_error(ImportError("No module named 'PySide6'"))
