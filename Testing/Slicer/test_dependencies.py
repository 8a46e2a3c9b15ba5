"""Installing packages: what is asked, what is done, what an offline reader is told. Nothing is installed here."""

import importlib.metadata
import subprocess
import sys
import types
from pathlib import Path

import pytest
import slicer
from SpineSegAISlicer.processes import dependencies
from SpineSegAISlicer.scene import samples


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
    assert "torch" in answers.texts[0] and "monai" in answers.texts[0] and "MB" in answers.texts[0]
    assert "numpy" not in answers.texts[0] and "SimpleITK" not in answers.texts[0]


def test_torch_comes_through_its_extension_and_the_rest_through_pip(without, answers, torch_extension, monkeypatch):
    without |= {"torch", "monai", "safetensors"}
    installed = []

    def pip_install(arguments):
        installed.append(arguments)
        without.clear()

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    dependencies.ensure()
    assert torch_extension == [(False, dependencies.TORCH.removeprefix("torch"))]
    (arguments,) = installed
    assert arguments[0] == "--constraint" and set(arguments[2:]) == {"monai>=1.5", "safetensors"}
    constraints = Path(arguments[1]).read_text(encoding="utf-8")
    assert f"numpy=={importlib.metadata.version('numpy')}" in constraints


def test_a_package_that_is_too_old_is_updated_and_the_reader_knows(answers, monkeypatch):
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


def test_newer_slicers_have_a_function_for_it(without, answers, monkeypatch):
    without |= {"einops"}
    called = []

    def pip_ensure(requirements, **named):
        called.append((requirements, named))
        without.clear()

    module = types.ModuleType("slicer.packaging")
    module.pip_ensure = pip_ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", module)
    dependencies.ensure()
    requirements, named = called[0]
    assert requirements == ["einops"] and named["prompt_install"] is False and named["requester"] == "SpineSegAI"
    assert Path(named["constraints"]).read_text(encoding="utf-8").count("==") > 5


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
    assert dependencies._isMet(wanted) is met


def test_the_worker_needs_no_other_package():
    """It runs in Slicer's Python, which has these, numpy and SimpleITK, and not what training and the shell need."""
    known = {r.split(">")[0].lower() for r, _size in dependencies.PACKAGES} | {"torch", "numpy", "simpleitk"}
    blocked = {"accelerate", "matplotlib", "tqdm", "slicerio", "PIL", "yaml", "nibabel", "skimage", "pandas"} - known
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


def test_the_panel_opens_before_anything_is_installed():
    program = str(Path(__file__).with_name("fresh_slicer.py"))
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
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
    assert source["sampleName"] == "SpineSegAI lumbar phantom" and source["uris"].startswith("file:///")
    algorithm, digest = source["checksums"].split(":")
    assert slicer.util.computeChecksum(algorithm, str(samples.samplePath())) == digest
