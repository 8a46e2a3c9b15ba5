"""Installing packages: what is asked, what is done, what an offline reader is told. Nothing is installed here."""

import ast
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import slicer
from SpineSegAISlicer.processes import dependencies
from SpineSegAISlicer.scene import samples


@pytest.fixture(autouse=True)
def slicer_that_was_just_started(monkeypatch):
    """Nothing of what a test leads to believe is remembered by the next one."""
    monkeypatch.setattr(dependencies, "_outdated", set())
    monkeypatch.setattr(dependencies, "_installed_all", False)


@pytest.fixture
def without(monkeypatch):
    """Pretends that packages are not installed, until something `installs` them."""
    absent = set()
    real = importlib.metadata.version

    def version(name):
        if name in absent:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(dependencies.importlib.metadata, "version", version)
    return absent


@pytest.fixture
def answers(monkeypatch):
    """What the reader is asked, and the answer."""
    asked = types.SimpleNamespace(texts=[], yes=True)

    def confirm(text, windowTitle=None, **named):
        asked.texts.append(text)
        return asked.yes

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", confirm)
    return asked


@pytest.fixture
def torch_extension(monkeypatch, without):
    """A PyTorch extension that installs torch."""
    called = []

    class Logic:
        def installTorch(self, askConfirmation=False, torchVersionRequirement=None):
            called.append((askConfirmation, torchVersionRequirement))
            without.discard("torch")
            return object()

    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=Logic))
    return called


def test_nothing_is_asked_when_everything_is_there(answers):
    dependencies.ensure()
    assert dependencies.missingPackages() == [] and answers.texts == []


def test_one_question_with_names_and_sizes(without, answers):
    without |= {"torch", "monai"}
    answers.yes = False
    with pytest.raises(dependencies.NotInstalled, match="nothing was done"):
        dependencies.ensure()
    assert len(answers.texts) == 1
    assert "torch>=2.4.1  (200 MB; with a graphics card up to 3000 MB)" in answers.texts[0]
    assert "monai>=1.5  (4 MB)" in answers.texts[0] and "together about 204 MB" in answers.texts[0]
    assert "numpy" not in answers.texts[0] and "SimpleITK" not in answers.texts[0]


def test_torch_comes_through_its_extension_and_the_rest_through_pip(without, answers, torch_extension, monkeypatch):
    without |= {"torch", "monai", "safetensors"}
    installed = []

    def pip_install(arguments):
        installed.append((*arguments, Path(arguments[1]).read_text(encoding="utf-8")))
        without.clear()

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    dependencies.ensure()
    assert torch_extension == [(False, dependencies.TORCH.removeprefix("torch"))]
    ((option, path, *requirements, constraints),) = installed
    assert option == "--constraint" and set(requirements) == {"monai>=1.5", "safetensors"}
    assert not Path(path).parent.exists()  # nothing is left behind
    assert f"numpy=={importlib.metadata.version('numpy')}" in constraints


def test_a_package_that_is_too_old_is_updated_and_the_reader_knows(answers, monkeypatch):
    monkeypatch.delitem(sys.modules, "pydantic", raising=False)
    versions = {"pydantic": "1.10.2"}
    real = importlib.metadata.version
    monkeypatch.setattr(dependencies.importlib.metadata, "version", lambda name: versions.get(name) or real(name))
    constraints = []

    def pip_install(arguments):
        constraints.append(Path(arguments[1]).read_text(encoding="utf-8"))
        assert arguments[2:] == ["pydantic>=2"]
        versions.clear()

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    dependencies.ensure()
    assert "version 1.10.2 is too old and will be updated" in answers.texts[0]
    assert "\npydantic==" not in constraints[0] and "\nnumpy==" in constraints[0]


def test_a_click_while_packages_are_being_installed_starts_no_second_installation(without, answers, monkeypatch):
    without |= {"einops"}
    installations = []

    def pip_install(arguments):
        installations.append(arguments)
        with pytest.raises(dependencies.NotInstalled, match="are being installed"):  # Slicer handles clicks meanwhile
            dependencies.ensure()
        without.clear()

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    dependencies.ensure()
    assert len(installations) == len(answers.texts) == 1
    without |= {"einops"}
    dependencies.ensure()
    assert len(installations) == 2


class Site:
    """A folder of packages: what is needed is one package in it, at least version 2."""

    REQUIREMENT = "frail>=2"

    def __init__(self, folder):
        self.folder = folder

    def install(self, version, name="frail"):
        """Put a package there, in the place of another version."""
        self.remove(name)
        (self.folder / name).mkdir()
        (self.folder / name / "__init__.py").write_text(f"version = {version!r}\n", encoding="utf-8")
        information = self.folder / f"{name}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n", encoding="utf-8")
        importlib.invalidate_caches()

    def remove(self, name="frail"):
        """As if it had never been there."""
        for path in self.folder.glob(f"{name}*"):
            shutil.rmtree(path)
        importlib.invalidate_caches()

    def damage(self):
        """As an installation that was broken off: the package is listed, and its folder is empty."""
        (self.folder / "frail" / "__init__.py").unlink()
        importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(dependencies, "TORCH", "numpy")  # which is there
    monkeypatch.setattr(dependencies, "PACKAGES", ((Site.REQUIREMENT, 5),))
    monkeypatch.setitem(dependencies._SIZES, Site.REQUIREMENT, 5)
    yield Site(tmp_path)
    sys.modules.pop("frail", None)


@pytest.fixture(params=["5.10", "5.11"])
def pip(request, monkeypatch):
    """Both ways to pip: `slicer.util.pip_install` of 5.10, and `slicer.packaging` of later Slicers, each as it is."""
    calls = types.SimpleNamespace(arguments=[], constraints=[], effect=lambda: None)

    def called(arguments, constraints):
        calls.arguments.append(arguments)
        calls.constraints.append(Path(constraints).read_text(encoding="utf-8"))
        calls.effect()

    def old(requirements):
        assert requirements[0] == "--constraint"
        called(requirements[2:], requirements[1])

    def new(requirements, constraints=None, no_deps_requirements=None, skip_packages=None, blocking=True,
            show_progress=True, requester=None, parent=None, logCallback=None, completedCallback=None):  # fmt: skip
        assert requester == "SpineSegAI" and blocking
        called(requirements, constraints)

    def unused(*_arguments, **_named):
        raise AssertionError("the other way was taken")

    if request.param == "5.10":
        monkeypatch.setitem(sys.modules, "slicer.packaging", None)
        monkeypatch.setattr(slicer.util, "pip_install", old)
    else:
        module = types.ModuleType("slicer.packaging")
        module.pip_install = new
        monkeypatch.setitem(sys.modules, "slicer.packaging", module)
        monkeypatch.setattr(slicer.util, "pip_install", unused)
    return calls


def test_an_absent_package_is_installed_once_and_nothing_else_changes(site, pip, answers):
    pip.effect = lambda: site.install("2.1")
    assert not dependencies.areInstalled()
    dependencies.ensure()
    dependencies.ensure()
    assert pip.arguments == [[Site.REQUIREMENT]] and len(answers.texts) == 1
    assert f"numpy=={importlib.metadata.version('numpy')}" in pip.constraints[0].splitlines()
    assert dependencies.areInstalled()


def test_an_old_package_is_updated_and_a_restart_is_not_needed(site, pip, answers):
    site.install("1.9")
    pip.effect = lambda: site.install("2.0")
    dependencies.ensure()
    assert pip.arguments == [[Site.REQUIREMENT]] and "frail==" not in pip.constraints[0]
    assert "(5 MB; version 1.9 is too old and will be updated)" in answers.texts[0]
    assert importlib.import_module("frail").version == "2.0"


def test_an_old_package_in_use_needs_a_restart_and_is_not_installed_again(site, pip, answers):
    site.install("1.9")
    importlib.import_module("frail")
    pip.effect = lambda: site.install("2.0")
    for _ in range(2):
        with pytest.raises(dependencies.NotInstalled, match=r"earlier version of frail\. Save your work, restart"):
            dependencies.ensure()
        assert not dependencies.areInstalled()
    assert len(pip.arguments) == len(answers.texts) == 1


def test_a_damaged_package_is_installed_again(site, pip, answers):
    """pip takes it for installed, so it must be told; its version may be right."""
    site.install("2.0")
    site.damage()
    assert dependencies.missingPackages() == [Site.REQUIREMENT]
    pip.effect = lambda: site.install("2.0")
    dependencies.ensure()
    assert pip.arguments == [["--force-reinstall", "--no-deps", Site.REQUIREMENT], [Site.REQUIREMENT]]
    assert "damaged, will be installed again" in answers.texts[0]


def test_leftovers_of_an_installation_that_was_broken_off_pin_nothing(site, pip, answers):
    site.install("1.0", "other")
    site.install("3.0", "other-leftover")
    (site.folder / "other-leftover-3.0.dist-info").rename(site.folder / "~ther-3.0.dist-info")
    (site.folder / "~ther-3.0.dist-info" / "METADATA").write_text("Name: other\nVersion: 3.0\n", encoding="utf-8")
    (site.folder / "empty-1.0.dist-info").mkdir()
    (site.folder / "frail-2.dist-info").mkdir()  # nothing tells which version
    pip.effect = lambda: site.install("2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dependencies.ensure()
    lines = pip.constraints[0].splitlines()
    assert "other==1.0" in lines and not [line for line in lines if "3.0" in line and "other" in line]
    assert not [line for line in lines if line.startswith(("empty", "frail"))]


def test_without_a_network_nothing_has_changed_and_the_next_click_asks_again(site, pip, answers):
    def offline():
        raise subprocess.CalledProcessError(1, "pip install")

    pip.effect = offline
    for _ in range(2):
        with pytest.raises(dependencies.NotInstalled, match="could not be installed") as caught:
            dependencies.ensure()
        assert f'pip download -d spinesegai-packages "{Site.REQUIREMENT}"' in str(caught.value)
    assert len(pip.arguments) == len(answers.texts) == 2
    pip.effect = lambda: site.install("2.0")
    dependencies.ensure()


def test_a_version_that_cannot_be_read_is_updated(site, pip, answers):
    site.install("unknown")
    pip.effect = lambda: site.install("2.0")
    dependencies.ensure()
    assert "version unknown is too old" in answers.texts[0]


def test_a_damaged_torch_is_taken_out_before_the_extension_installs_it(answers, torch_extension, without, monkeypatch):
    monkeypatch.setattr(dependencies, "_isBroken", lambda requirement: requirement == dependencies.TORCH and not done)
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # not loaded yet, whatever other tests did
    done, removed = [], []
    monkeypatch.setattr(
        slicer.util, "pip_uninstall", lambda names: (removed.append(names), done.append(1)), raising=False
    )
    dependencies.ensure()
    assert removed == ["torch"] and len(torch_extension) == 1
    assert "damaged" in answers.texts[0]


def test_packages_that_come_with_torch_are_not_installed_again(without, answers, monkeypatch):
    class Logic:
        def installTorch(self, askConfirmation=False, torchVersionRequirement=None):
            without.clear()
            return object()

    without |= {"torch", "scipy"}
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=Logic))
    monkeypatch.setattr(slicer.util, "pip_install", lambda arguments: pytest.fail("installed twice"))
    dependencies.ensure()


def test_sizes_are_said_in_mb():
    everything = dict.fromkeys(dependencies._SIZES)
    lines = [line for line in dependencies.question(everything).splitlines() if line.startswith("•")]
    assert len(lines) == len(everything)
    assert all(re.search(r"\(\d+ MB[);]", line) for line in lines)


def test_an_offline_reader_is_told_which_python(monkeypatch):
    """Slicer 5.10 comes with Python 3.12, or 3.11 where others have built it."""
    monkeypatch.setattr(dependencies.sys, "version_info", (3, 12, 10, "final", 0))
    assert "and Python 3.12, run:" in dependencies.offlineInstructions(["einops"])


def test_nothing_is_used_that_python_3_12_does_not_have():
    gone = {"asynchat", "asyncore", "distutils", "imp", "smtpd", "pkg_resources"}
    root = Path(dependencies.__file__).parents[3]
    used = set()
    for path in [*root.glob("SpineSegAI/**/*.py"), *root.glob("SpineSegAILib/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                used.add(node.module.split(".")[0])
    assert "slicer" in used and not used & gone


def test_without_the_pytorch_extension_it_says_where_to_get_it(without, answers):
    without |= {"torch"}
    with pytest.raises(dependencies.NotInstalled, match="Extensions Manager"):
        dependencies.ensure()


def test_an_offline_computer_gets_the_exact_list(without, answers, monkeypatch):
    without |= {"monai", "psutil"}

    def offline(arguments):
        raise RuntimeError("no network")

    monkeypatch.setattr(slicer.util, "pip_install", offline)
    with pytest.raises(dependencies.NotInstalled) as caught:
        dependencies.ensure()
    text = str(caught.value)
    assert "no network" in text and 'pip download -d spinesegai-packages "monai>=1.5" "psutil"' in text
    assert "--no-index --find-links" in text


def test_what_is_still_missing_afterwards_is_named(without, answers, monkeypatch):
    without |= {"einops"}
    monkeypatch.setattr(slicer.util, "pip_install", lambda arguments: None)
    with pytest.raises(dependencies.NotInstalled, match="still missing: einops"):
        dependencies.ensure()


@pytest.mark.parametrize(
    ("installed", "wanted", "met"),
    [
        ("2.13.0+cpu", "torch>=2.4.1", True),
        ("2.4.0", "torch>=2.4.1", False),
        ("1.10", "x>=1.9", True),
        ("2.0rc1", "x>=2", True),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch, installed, wanted, met):
    monkeypatch.setattr(dependencies.importlib.metadata, "version", lambda name: installed)
    monkeypatch.setattr(dependencies, "_isBroken", lambda requirement: False)
    assert dependencies._isMet(wanted) is met


def test_the_worker_needs_no_other_package():
    """It runs in Slicer's Python, which has these, numpy and SimpleITK, and not what training and the shell need."""
    known = {r.split(">")[0].lower() for r, _size in dependencies.PACKAGES} | {"torch", "numpy", "simpleitk"}
    blocked = {
        "pydicom",
        "accelerate",
        "matplotlib",
        "tqdm",
        "slicerio",
        "PIL",
        "yaml",
        "nibabel",
        "skimage",
        "pandas",
    } - known
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import SpineSegAILib.worker, SpineSegAILib.inference, SpineSegAILib.results.measurement
from SpineSegAILib.methods.catalog import METHODS, build_method, make_config
build_method(make_config("resenc-unet", "tiny"))
"""
    root = str(samples.resources_folder().parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", cwd=root)
    assert done.returncode == 0, done.stderr


def test_the_panel_opens_before_anything_is_installed():
    program = str(Path(__file__).with_name("fresh_slicer.py"))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_the_sample_is_registered_with_its_checksum(monkeypatch):
    registered = []

    class Logic:
        @staticmethod
        def registerCustomSampleDataSource(**named):
            registered.append(named)

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=Logic))
    samples.register()
    (source,) = registered
    assert source["sampleName"] == "SpineSegAI synthetic lumbar spine" and source["uris"].startswith("file:///")
    algorithm, digest = source["checksums"].split(":")
    assert slicer.util.computeChecksum(algorithm, str(samples.samplePath())) == digest
