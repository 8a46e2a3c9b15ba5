"""Python packages that the segmentation process needs, and how they get into Slicer's Python.

Asked once, at the click that needs them. torch comes through the PyTorch extension, which knows the computer's graphics
card; the rest through pip, with every other installed version pinned, so that nothing that Slicer or another extension
relies on (numpy, SimpleITK, requests …) can change. numpy, SimpleITK and pydicom come with Slicer.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile

import slicer
from slicer.i18n import tr as _

TORCH = "torch>=2.4.1"  # of monai 1.5

PACKAGES = (
    ("monai>=1.5", 4),
    ("pydantic>=2", 7),
    ("safetensors", 1),
    ("einops", 1),
    ("psutil", 1),
    ("scipy", 40),
)
"""Requirement and size of the download (MB), for packages other than torch."""

TRAINING_PACKAGES = (("accelerate>=1", 2), ("matplotlib", 9), ("tqdm", 1))
"""The same, for what training needs besides."""

REPORT_PACKAGES = (("matplotlib", 9), ("jinja2", 1))
"""The same, for a report."""

DICOM_SEG_PACKAGES = (("highdicom>=0.23", 4),)
"""The same, for a DICOM segmentation."""

TORCH_MB, TORCH_GPU_MB = 200, 3000
"""Size of torch's download without and with a graphics card that it can use, the card's libraries included."""

_SIZES = {**dict((*PACKAGES, *TRAINING_PACKAGES, *REPORT_PACKAGES, *DICOM_SEG_PACKAGES)), TORCH: TORCH_MB}


_installed_all = False
_installing = False  # Slicer goes on handling clicks while pip runs
_outdated = set()  # packages that were replaced although this process had loaded them


class NotInstalled(Exception):
    """Packages are missing and were not installed; the text says what to do."""


def missingPackages(more=()):
    """Requirements that Slicer's Python does not meet, torch first. Imports none of them.

    :param more: packages besides those for segmentation, as `TRAINING_PACKAGES`.
    """
    return [requirement for requirement in (TORCH, *(r for r, _size in (*PACKAGES, *more))) if not _isMet(requirement)]


def areInstalled():
    """Whether nothing is missing for segmentation. Asked at every stroke, so a yes is remembered."""
    global _installed_all
    _installed_all = not _outdated and (_installed_all or not missingPackages())
    return _installed_all


def _isMet(requirement):
    minimum = requirement.partition(">=")[2]
    installed = _installed(requirement)
    if installed is None or _isBroken(requirement):
        return False
    return not minimum or _numbers(installed) >= _numbers(minimum)


def _installed(requirement):
    """Version of a requirement's package that is there; None if there is none, or nothing that tells."""
    try:
        return importlib.metadata.version(_name(requirement))
    except importlib.metadata.PackageNotFoundError:
        return None


def _isBroken(requirement):
    """Whether pip takes a package for installed whose files are gone, as after an installation that was broken off."""
    name = _name(requirement)
    if name in sys.modules or _installed(requirement) is None:
        return False
    found = importlib.util.find_spec(name)
    return found is None or found.origin is None  # a folder without anything in it is found, too


def _name(requirement):
    return requirement.partition(">=")[0]


def _numbers(version):
    found = re.match(r"[\d.]*\d", version)
    return tuple(int(n) for n in found.group().split(".")) if found else ()


def question(missing):
    """What the reader is asked: names and sizes, and what is there already but too old or damaged."""
    lines = []
    for requirement in missing:
        about = [_("{size} MB").format(size=_SIZES[requirement])]
        if requirement == TORCH:
            about.append(_("with a graphics card up to {size} MB").format(size=TORCH_GPU_MB))
        if _isBroken(requirement):
            about.append(_("damaged, will be installed again"))
        elif _installed(requirement):
            words = _("version {version} is too old and will be updated")
            about.append(words.format(version=_installed(requirement)))
        lines.append(f"• {requirement}  ({'; '.join(about)})")
    return (
        _("SpineSegAI needs Python packages that this Slicer does not have yet:")
        + "\n\n"
        + "\n".join(lines)
        + "\n\n"
        + _("They are downloaded once (together about {size} MB) and installed into Slicer.").format(
            size=sum(_SIZES[requirement] for requirement in missing)
        )
        + " "
        + _("All other packages stay as they are.")
        + "\n"
        + _("Download and install them now?")
    )


def offlineInstructions(missing):
    """How to get the packages onto a computer without internet access: the exact list, to take along."""
    names = " ".join(f'"{requirement}"' for requirement in missing)
    python = ".".join(map(str, sys.version_info[:2]))
    return (
        _("On a computer with internet access, the same operating system and Python {python}, run:").format(
            python=python
        )
        + f"\n\n    python -m pip download -d spinesegai-packages {names}\n\n"
        + _("Copy the folder “spinesegai-packages” here, and run in Slicer's Python console:")
        + f"\n\n    slicer.util.pip_install('--no-index --find-links=/path/to/spinesegai-packages {names}')\n"
    )


def ensure(more=()):
    """Install what is missing, after asking.

    :param more: packages besides those for segmentation, as `TRAINING_PACKAGES`.
    :raises NotInstalled: the reader declined, the installation failed, or Slicer must be restarted; its remedy is
        how to continue, with the exact list.
    """
    global _installing
    _refuseOutdated()
    missing = missingPackages(more)
    if not missing:
        return
    if _installing:
        raise NotInstalled(_("The packages are being installed. Wait until that is done, and try again."))
    if not slicer.util.confirmOkCancelDisplay(question(missing), _("SpineSegAI: install packages")):
        raise NotInstalled(
            _("The packages were not installed, so training cannot start.")
            if more == TRAINING_PACKAGES
            else _("The packages were not installed, so nothing was done.")
        )
    loaded = {_name(requirement) for requirement in missing if _installed(requirement)} & set(sys.modules)
    _installing = True
    slicer.util.showStatusMessage(_("Installing Python packages for SpineSegAI…"))
    try:
        if TORCH in missing:
            _installTorch()
        others = [requirement for requirement in missing if requirement != TORCH and not _isMet(requirement)]
        if others:
            _install(others)
    except NotInstalled:
        raise
    except Exception as error:  # pip's failures have many classes; all of them mean the same to the reader
        raise NotInstalled(
            _("The packages could not be installed: {error}").format(error=error)
            + "\n\n"
            + offlineInstructions(missing)
        ) from error
    finally:
        _installing = False
        importlib.invalidate_caches()  # another process has written the files
        slicer.util.showStatusMessage("")
    still = missingPackages(more)
    if still:
        raise NotInstalled(
            _("These packages are still missing: {names}.").format(names=", ".join(still))
            + "\n\n"
            + offlineInstructions(still)
        )
    _outdated.update(loaded)
    _refuseOutdated()


def _refuseOutdated():
    """What was loaded before it was replaced stays as it was until Slicer ends."""
    if _outdated:
        raise NotInstalled(
            _(
                "The packages are installed, but Slicer still uses the earlier version of {names}."
                " Save your work, restart Slicer, and try again."
            ).format(names=", ".join(sorted(_outdated)))
        )


def ready(more=()):
    """`ensure`, and reports to the user why packages are still missing.

    :param more: packages besides those for segmentation, as `REPORT_PACKAGES`.
    :returns: whether all are there.
    """
    try:
        ensure(more)
    except NotInstalled as error:
        slicer.util.errorDisplay(str(error), windowTitle=_("SpineSegAI"))
        return False
    return True


def _installTorch():
    try:
        import PyTorchUtils
    except ModuleNotFoundError as error:
        raise NotInstalled(
            _(
                "torch is installed by the extension “PyTorch”."
                " Install it in the Extensions Manager, restart Slicer, and try again."
            )
            + "\n\n"
            + offlineInstructions([TORCH])
        ) from error
    if _isBroken(TORCH):  # else it is taken for installed
        slicer.util.pip_uninstall("torch")
    if (
        PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=False, torchVersionRequirement=TORCH.removeprefix("torch")
        )
        is None
    ):
        raise NotInstalled(_("The PyTorch extension did not install torch.") + "\n\n" + offlineInstructions([TORCH]))


def _install(requirements):
    """pip with all other versions as constraints."""
    with tempfile.TemporaryDirectory(prefix="SpineSegAI-") as folder:
        constraints = os.path.join(folder, "constraints.txt")
        with open(constraints, "w", encoding="utf-8") as file:
            file.write(installedVersions(without=[_name(requirement) for requirement in requirements]))
        broken = [requirement for requirement in requirements if _isBroken(requirement)]
        if broken:  # pip takes them for installed; what they need comes with the rest
            _pip(["--force-reinstall", "--no-deps", *broken], constraints)
        _pip(requirements, constraints)


def _pip(arguments, constraints):
    """Through `slicer.packaging` where there is one (from 5.11): it shows how far it is, and that it is for us."""
    try:
        from slicer.packaging import pip_install
    except ImportError:
        slicer.util.pip_install(["--constraint", constraints, *arguments])
    else:
        pip_install(arguments, constraints=constraints, requester="SpineSegAI")


def installedVersions(without=()):
    """One ``name==version`` line per installed package.

    :param without: names, in lower case, of packages that may change.
    """
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata.get("Name")
        # By name: what an installation that was broken off leaves behind tells the versions of before.
        version = _installed(name) if name else None
        # A local build such as 2.3.0+cu121 is on no index, but as a constraint it keeps what is there.
        if version and name.lower() not in without:
            versions.setdefault(name.lower(), f"{name}=={version}")
    return "\n".join(versions[name] for name in sorted(versions)) + "\n"
