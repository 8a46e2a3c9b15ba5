"""Training runs: the library's launcher, Slicer's Python for it, and where runs write to."""

from SpineSegAILib.resources import user_folder

from . import dependencies, python

_launcher = None


def runsFolder():
    """Where runs that are started here write to."""
    return user_folder() / "Runs"


def launcher():
    """The library's launcher; None while the packages that it needs are not installed."""
    global _launcher
    if _launcher is None and dependencies.areInstalled():
        from SpineSegAILib.training import launcher as found

        _launcher = found
    return _launcher


def interpreter():
    """What the launcher starts runs with, as keyword arguments.

    :raises MissingPackageError: there is no Python of Slicer's.
    """
    return {"python": python.program(), "environment": python.variables()}


def modified(path):
    """When a file was changed last; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
