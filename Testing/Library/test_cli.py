"""The command line: what it refuses, what it writes, and that it leaves nothing half-done."""

import json
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib import __version__, cli
from SpineSegAILib.anatomy import scheme, structure
from SpineSegAILib.checkpoints import load_tensors, read_header, save_checkpoint
from SpineSegAILib.cli.segment import HINT_FLAGS, check_hints
from SpineSegAILib.cli.train import training_config
from SpineSegAILib.errors import HintError
from SpineSegAILib.hints import Anchor
from SpineSegAILib.imaging import Geometry
from SpineSegAILib.methods.catalog import METHODS
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation, read_segmentation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def phantom():
    spec = PhantomSpec(top="L3", bottom="S1", slices=7, slice_mm=6.0, pixel_mm=2.0)
    return make_phantom(spec, np.random.default_rng(0))


@pytest.fixture
def case(tmp_path, phantom) -> Path:
    """A folder with one image in it."""
    sitk.WriteImage(phantom.image, str(tmp_path / "case.nii.gz"))
    return tmp_path


@pytest.fixture
def predictor(monkeypatch, phantom):
    """Stands in for the network: it knows the phantom. Returns what it was asked."""
    asked = {}

    class Knowing:
        def __init__(self, info, device):
            asked.update(checkpoint=info.name, device=device)
            self.method = SimpleNamespace(images_per_slice=lambda options: int(options.get("samples", 3)))

        def segment(self, image, *, hints, options, progress):
            asked.update(hints=hints, options=options)
            progress(0.5, "half way")
            found = Segmentation(
                phantom.labels,
                scheme("lumbar-mr"),
                outline_quality={24: 0.9},
                level_confidence=0.9,
                warnings=["The levels are a guess."],
                unvalidated=asked.get("unvalidated", frozenset()),
                provenance={"seconds": {}, "device": asked["device"]},
                uncertainty=sitk.Cast(image * 0, sitk.sitkFloat32) + asked["doubt"] if "doubt" in asked else None,
            )
            return found.restricted_to(hints.structures) if hints.structures else found

    monkeypatch.setattr("SpineSegAILib.inference.Predictor", Knowing)
    return asked


def run(*words) -> int:
    """Exit code of one command, argparse's own included."""
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as exit:
        return exit.code


def segment(folder: Path, checkpoint: Path, *more, output="out.seg.nrrd") -> int:
    return run("segment", folder / "case.nii.gz", "--output", folder / output, "--checkpoint", checkpoint, *more)


def files(folder: Path) -> set[str]:
    """Everything in a folder, hidden files too."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


# --- segment ---


def test_segment_writes_all_that_was_asked_for(case, tiny_checkpoint, predictor, capsys, phantom):
    more = ["--preview", case / "p.png", "--measurements", case / "m.csv", "--json", case / "r.json"]
    assert segment(case, tiny_checkpoint, "--device", "cpu", "--option", "batch=4", *more) == 0
    assert files(case) == {"case.nii.gz", "out.seg.nrrd", "p.png", "m.csv", "r.json"}
    assert (predictor["checkpoint"], predictor["device"], predictor["options"]) == ("tiny", "cpu", {"batch": 4})
    result = read_segmentation(case / "out.seg.nrrd")
    assert np.array_equal(sitk.GetArrayFromImage(result.labels), sitk.GetArrayFromImage(phantom.labels))
    summary = json.loads((case / "r.json").read_text(encoding="utf-8"))
    assert summary["checkpoint"] == "tiny" and summary["warnings"] == ["The levels are a guess."]
    assert summary["written"] == [str(case / name) for name in ("out.seg.nrrd", "p.png", "m.csv", "r.json")]
    assert (case / "p.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert "L5 vertebra (body)" in out and "0.90" in out and f"wrote {case / 'm.csv'}" in out
    assert "note: The levels are a guess." in out and "s on cpu, model tiny" in out and not err


def test_a_map_of_uncertainty_is_a_file_for_methods_that_have_one(
    case, tiny_checkpoint, predictor, capsys, tmp_path_factory
):
    wanted = ["--uncertainty", case / "u.nii.gz"]
    assert segment(case, tiny_checkpoint, *wanted) == 2
    assert "does not produce samples" in capsys.readouterr().err
    info = read_header(tiny_checkpoint)
    method = {**info.metadata["method"], "method": "verdiff-net"}
    sampling = tmp_path_factory.mktemp("checkpoint") / "sampling.safetensors"
    save_checkpoint(sampling, load_tensors(info), {**info.metadata, "method": method})
    assert segment(case, sampling, "--option", "samples=1", *wanted) == 2
    assert "two samples" in capsys.readouterr().err and "hints" not in predictor, "refused before it takes time"
    assert files(case) == {"case.nii.gz"}
    predictor["doubt"] = 0.25
    assert segment(case, sampling, *wanted) == 0
    assert f"wrote {case / 'u.nii.gz'}" in capsys.readouterr().out
    written, image = (sitk.ReadImage(case / name) for name in ("u.nii.gz", "case.nii.gz"))
    assert Geometry.of(written).matches(Geometry.of(image))
    assert np.all(sitk.GetArrayViewFromImage(written) == np.float32(0.25))


def test_label_images_have_a_side_file(case, tiny_checkpoint, predictor, capsys):
    assert segment(case, tiny_checkpoint, output="out.nii.gz") == 0
    assert files(case) == {"case.nii.gz", "out.nii.gz", "out.json"}
    assert f"wrote {case / 'out.json'}" in capsys.readouterr().out


def test_another_program_s_side_file_is_not_replaced(case, tiny_checkpoint, predictor, capsys):
    (case / "out.json").write_text('{"EchoTime": 0.1}')
    assert segment(case, tiny_checkpoint, output="out.nii.gz") == 2
    assert "out.json" in capsys.readouterr().err and "hints" not in predictor, "refused before it takes time"
    assert (case / "out.json").read_text(encoding="utf-8") == '{"EchoTime": 0.1}' and not (case / "out.nii.gz").exists()
    (case / "out.json").unlink()
    assert segment(case, tiny_checkpoint, output="out.nii.gz") == 0
    assert segment(case, tiny_checkpoint, output="out.nii.gz") == 0  # our own is


def test_json_on_stdout_is_all_there_is(case, tiny_checkpoint, predictor, capsys):
    assert segment(case, tiny_checkpoint, "--json", "-") == 0
    summary = json.loads(capsys.readouterr().out)
    assert {s["structure"] for s in summary["structures"]} >= {"L3", "L4", "L5", "S1"}
    assert files(case) == {"case.nii.gz", "out.seg.nrrd"}


def test_quiet_still_says_what_matters(case, tiny_checkpoint, predictor, capsys):
    assert segment(case, tiny_checkpoint, "--quiet") == 0
    assert capsys.readouterr() == ("", "note: The levels are a guess.\n")


def test_hints_reach_the_method(case, tiny_checkpoint, predictor, phantom):
    locked = case / "locked.nii.gz"
    sitk.WriteImage(phantom.labels, str(locked))
    words = ["--visible", "L3:S1", "--anchor", "L5@1,-2.5,3", "--anchor", "L4@0,0,40", "--structures", "L4,L5,L4/L5"]
    assert segment(case, tiny_checkpoint, *words, "--lock", locked) == 0
    hints = predictor["hints"]
    assert hints.visible == (22, 26) and hints.structures == (23, 24, 123)
    assert hints.anchors == (Anchor(24, (1.0, -2.5, 3.0)), Anchor(23, (0.0, 0.0, 40.0)))
    assert hints.locked.GetSize() == phantom.labels.GetSize()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--visible", "L3"], "--visible: “L3” is not a range"),
        (["--visible", "S1:L3"], "lies below"),
        (["--visible", "L3/L4:S1"], "not a vertebra"),
        (["--visible", "L3:Q9"], "“Q9” is not a structure"),
        (["--anchor", "L5"], "--anchor: “L5” lacks a point"),
        (["--anchor", "L5@1,2"], "--anchor: “1,2” is not a point"),
        (["--anchor", "L5@1,2,nan"], "is not a point"),
        (["--anchor", "M1@1,2,3"], "“M1” is not a structure"),
        (["--structures", "L3,knee"], "--structures: “knee” is not a structure"),
        (["--structures", ","], "does not name anything"),
        (["--option", "batch"], "--option: “batch” is not of the form key=value"),
        (["--device", "abacus"], "--device: “abacus” is not a device. Use auto, cpu"),
        (["--method", "magic"], "--method: There is no method “magic”"),
        (["--anchor", "C3@1,2,3"], "C3 is not in the label scheme"),
        (["--structures", "C3"], "C3 is not in the label scheme"),
        (["--method", "unet"], "is of the method resenc-unet, not unet"),
        (["--checkpoint", "nobody"], "no checkpoint named “nobody”"),
        (["--checkpoint", "weights.pt"], "pickled"),
        (["--lock", "nothing.nii.gz"], "was not found"),
        (["--preview", "p.jpg"], "--preview: Unsupported file extension: p.jpg. Use .png"),
        (["--measurements", "m.xls"], "Use .csv"),
        (["--json", "r.txt"], "Use .json"),
        (["--output", "out.doc"], "Use .seg.nrrd,"),
        (["--output", "case.nii.gz/out.nii.gz"], "case.nii.gz is not a folder"),
        (["--output", "case.nii.gz"], "IMAGE and --output name the same file: case.nii.gz"),
        (["--output", "r.nii.gz", "--json", "r.json"], "--json and the side file of --output name the same file"),
        (["--levels-from", "r.nii.gz", "--output", "r.nii.gz"], "--levels-from and --output name the same file"),
    ],
)
def test_refusals_name_the_thing_and_write_nothing(case, tiny_checkpoint, predictor, capsys, monkeypatch, words, said):
    monkeypatch.chdir(case)
    assert segment(Path(), tiny_checkpoint, *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert files(case) == {"case.nii.gz"} and predictor.get("hints") is None


def test_hints_that_a_method_does_not_take_are_refused(case, tiny_checkpoint, predictor, capsys):
    (case / "k.json").write_text('{"L4": [0, 0, 0]}')
    assert segment(case, tiny_checkpoint, "--keypoints", case / "k.json") == 2
    err = capsys.readouterr().err
    assert "--keypoints is not supported by Residual-encoder U-Net (resenc-unet)" in err
    assert files(case) == {"case.nii.gz", "k.json"}


def test_every_hint_is_refused_or_taken_by_the_catalogue():
    for method in METHODS.values():
        for hint in HINT_FLAGS:
            if hint in method.accepted_hints:
                check_hints([hint], method)
            else:
                with pytest.raises(HintError, match=method.id):
                    check_hints([hint], method)


def test_errors_for_machines(case, tiny_checkpoint, predictor, capsys):
    assert segment(case, tiny_checkpoint, "--json", "-", "--checkpoint", "nobody") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "CheckpointError" and "nobody" in error["message"] and error["remedy"]


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_damaged_image(case, tiny_checkpoint, predictor, capsys, content):
    (case / "case.nii.gz").write_bytes(content)
    assert segment(case, tiny_checkpoint) == 2
    assert "case.nii.gz" in capsys.readouterr().err and files(case) == {"case.nii.gz"}


def test_missing_image(tmp_path, tiny_checkpoint, predictor, capsys):
    assert segment(tmp_path, tiny_checkpoint) == 2
    assert "case.nii.gz" in capsys.readouterr().err and files(tmp_path) == set()


def test_nothing_found_is_an_error(case, tiny_checkpoint, predictor, capsys):
    assert segment(case, tiny_checkpoint, "--structures", "T9") == 2
    assert "None of the requested structures was found" in capsys.readouterr().err
    assert files(case) == {"case.nii.gz"}


def test_what_was_learnt_from_phantoms_alone_must_be_asked_for(case, tiny_checkpoint, predictor, capsys, phantom):
    canal = structure("canal").id
    predictor["unvalidated"] = frozenset([canal])
    assert segment(case, tiny_checkpoint) == 0
    assert canal not in read_segmentation(case / "out.seg.nrrd").present
    assert (
        "note: Omitted canal: experimental, not validated on real cases. Use --unvalidated to include them."
        in capsys.readouterr().out
    )
    for words in (["--unvalidated"], ["--structures", "canal,L4"]):
        assert segment(case, tiny_checkpoint, *words) == 0
        assert canal in read_segmentation(case / "out.seg.nrrd").present
        assert "spinal canal (experimental)" in capsys.readouterr().out
    sitk.WriteImage((phantom.labels == canal) * canal, str(case / "locked.nii.gz"))
    assert segment(case, tiny_checkpoint, "--lock", case / "locked.nii.gz") == 0
    assert canal in read_segmentation(case / "out.seg.nrrd").present  # the reader's own
    everything = frozenset(scheme("lumbar-mr").ids)
    predictor["unvalidated"] = everything - {structure("T9").id}  # which is not in view
    assert segment(case, tiny_checkpoint) == 2
    assert "Use --unvalidated" in capsys.readouterr().err
    predictor["unvalidated"] = everything  # a model that has nothing else is shown as what it is
    assert segment(case, tiny_checkpoint) == 0
    out = capsys.readouterr().out
    assert "note: This model is experimental" in out and "L5 vertebra (body) (experimental)" in out


def test_a_failing_output_takes_the_others_back(case, tiny_checkpoint, predictor, monkeypatch):
    assert segment(case, tiny_checkpoint) == 0
    before = (case / "out.seg.nrrd").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("SpineSegAILib.results.preview.render_preview", full)
    assert segment(case, tiny_checkpoint, "--preview", case / "p.png") == 2
    assert files(case) == {"case.nii.gz", "out.seg.nrrd"}
    assert (case / "out.seg.nrrd").read_bytes() == before


def test_without_an_output_the_result_lies_beside_the_image(case, tiny_checkpoint, predictor, capsys):
    words = ["segment", case / "case.nii.gz", "-m", tiny_checkpoint, "--device", "cpu"]
    assert run(*words, "--preview", "--measurements") == 0
    assert files(case) == {"case.nii.gz", "case.seg.nrrd", "case.png", "case.csv"}
    assert run(*words, "--format", "nii.gz", "-o", f"{case}/new/folder/") == 0
    assert files(case / "new") == {"folder", "folder/case_seg.nii.gz", "folder/case_seg.json"}


def test_only_our_own_files_are_replaced_unasked(case, tiny_checkpoint, predictor, capsys):
    more = ["--preview", case / "p.png", "--measurements", case / "m.csv", "--json", case / "r.json"]
    for _ in range(2):  # as `make demo` does
        assert segment(case, tiny_checkpoint, *more) == 0
    for name in ("out.seg.nrrd", "p.png", "m.csv", "r.json"):
        ours = (case / name).read_bytes()
        (case / name).write_bytes(b"a,person's,work")
        assert segment(case, tiny_checkpoint, *more) == 2
        err = capsys.readouterr().err
        assert f"{case / name} exists and is not" in err and "--overwrite" in err
        assert (case / name).read_bytes() == b"a,person's,work"
        (case / name).write_bytes(ours)
    assert run("relabel", case / "out.seg.nrrd", "-o", case / "right.seg.nrrd", "--shift", "up") == 0
    assert segment(case, tiny_checkpoint, output="right.seg.nrrd") == 2, "someone corrected it"
    assert segment(case, tiny_checkpoint, "--overwrite", output="right.seg.nrrd") == 0


def test_protected_folder(case, tiny_checkpoint, predictor, capsys, monkeypatch):
    monkeypatch.setattr("SpineSegAILib.files.os.access", lambda path, mode: False)  # an administrator may write all
    assert segment(case, tiny_checkpoint) == 2
    assert "cannot be written to" in capsys.readouterr().err and files(case) == {"case.nii.gz"}


@pytest.mark.parametrize("request_to_end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_leaves_nothing(case, tiny_checkpoint, request_to_end):
    program = textwrap.dedent(
        """
        import sys, time, types
        from SpineSegAILib import cli

        class Slow:
            def __init__(self, *_, **__): pass
            def segment(self, *_, **__):
                print("working", flush=True)
                time.sleep(60)

        sys.modules["SpineSegAILib.inference"] = types.SimpleNamespace(Predictor=Slow)
        sys.exit(cli.main(sys.argv[1:]))
        """
    )
    words = ["segment", case / "case.nii.gz", "--output", case / "out.nii.gz", "--checkpoint", tiny_checkpoint]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout.readline() == "working\n"
    process.send_signal(request_to_end)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert files(case) == {"case.nii.gz"}


# --- the quick commands ---


@pytest.mark.parametrize(
    "words", ["import", "methods", "checkpoints", "checkpoints --json", "--version", "segment --help"]
)
def test_quick_commands_need_no_torch(words):
    program = "import SpineSegAILib" if words == "import" else f"cli.main({words.split()!r})"
    program = textwrap.dedent(
        f"""
        import sys
        from SpineSegAILib import cli
        try:
            {program}
        except SystemExit as exit:
            assert not exit.code
        heavy = {{"torch", "monai", "numpy", "SimpleITK", "scipy", "matplotlib"}} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8")
    elapsed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time, since the machine may be busy with other things; waiting counts only where it is much.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5 and elapsed < 5


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"spinesegai {__version__}\n"


def test_methods(capsys):
    assert run("methods") == 0
    out = capsys.readouterr().out
    assert all(m in out for m in METHODS) and "lumbar-mr: T9" in out
    assert run("methods", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert [m["id"] for m in table["methods"]] == list(METHODS)
    assert "tiny" in table["methods"][0]["presets"] and "anchors" in table["methods"][0]["hints"]


def test_checkpoints(capsys, monkeypatch, tiny_checkpoint):
    monkeypatch.setenv("SPINESEGAI_CHECKPOINTS", str(tiny_checkpoint.parent))
    assert run("checkpoints") == 0
    assert "tiny" in capsys.readouterr().out
    assert run("checkpoints", "--json") == 0
    found = {c["name"]: c for c in json.loads(capsys.readouterr().out)}
    assert found["tiny"]["method"] == "resenc-unet" and found["tiny"]["path"] == str(tiny_checkpoint)


def test_no_command_is_a_usage_error(capsys):
    assert run() == 2
    assert "usage: spinesegai" in capsys.readouterr().err


# --- phantom ---


def test_phantom(tmp_path, capsys):
    words = ["--spec", "top=L3", "--spec", "slices=5", "--spec", "pixel_mm=2", "--seed", "3"]
    for name in ("a", "b"):
        assert (
            run("phantom", "--output", tmp_path / f"{name}.nii.gz", "--label", tmp_path / f"{name}_l.nrrd", *words) == 0
        )
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{n}.nii.gz"))) for n in "ab")
    assert np.array_equal(a, b) and a.std() > 0
    label = sitk.ReadImage(str(tmp_path / "a_l.nrrd"))
    assert label.GetSize()[2] == 5
    assert structure("L3").id in np.unique(sitk.GetArrayFromImage(label))


@pytest.mark.parametrize("there", ["a.nii.gz", "l.nrrd"])
def test_phantom_replaces_no_file_unasked(tmp_path, capsys, there):
    (tmp_path / there).write_bytes(b"a patient's")
    words = ["--output", tmp_path / "a.nii.gz", "--label", tmp_path / "l.nrrd", "--spec", "slices=3"]
    assert run("phantom", *words, "--spec", "pixel_mm=4") == 2
    assert f"{there} exists" in capsys.readouterr().err
    assert (tmp_path / there).read_bytes() == b"a patient's" and files(tmp_path) == {there}
    assert run("phantom", *words, "--spec", "pixel_mm=4", "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--spec", "top=Q1"], "Q1 is not a level"),
        (["--spec", "colour=3"], "colour"),
        (["--output", "x.png"], "Use .nii.gz"),
        (["--output", "/dev/null/x.nii.gz"], "/dev/null is not a folder"),
        (["--label", "x.nii.gz"], "--output and --label name the same file"),
    ],
)
def test_phantom_refusals(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert run("phantom", "--output", "x.nii.gz", *words) == 2
    assert said in capsys.readouterr().err and files(tmp_path) == set()


# --- evaluate ---


@pytest.fixture
def dataset(case, phantom) -> Path:
    sitk.WriteImage(phantom.labels, str(case / "label.nii.gz"))
    annotated = sorted(int(v) for v in np.unique(sitk.GetArrayFromImage(phantom.labels)) if v)
    entry = {"image": "case.nii.gz", "label": "label.nii.gz", "annotated": annotated}
    (case / "dataset.json").write_text(json.dumps({"validation": [entry]}), encoding="utf-8")
    return case / "dataset.json"


class TestEvaluate:
    @pytest.fixture(autouse=True)
    def knowing(self, monkeypatch, phantom):
        class Knowing:
            scheme = scheme("lumbar-mr")
            device = "cpu"

            def __init__(self, info, device):
                pass

            def segment(self, image, options):
                return Segmentation(sitk.Resample(phantom.labels, image, sitk.Transform(), 1), scheme("lumbar-mr"))

        monkeypatch.setattr("SpineSegAILib.inference.Predictor", Knowing)

    def evaluate(self, dataset, checkpoint, *more) -> int:
        report = dataset.with_name("report.json")
        words = ["--split", "validation", "--checkpoint", checkpoint, "--output", report]
        return run("evaluate", dataset, *words, *more)

    def test_report(self, dataset, tiny_checkpoint, capsys):
        assert self.evaluate(dataset, tiny_checkpoint, "--variants", "full,top-third-off") == 0
        report = json.loads(dataset.with_name("report.json").read_text(encoding="utf-8"))
        assert report["checkpoint"] == "tiny" and set(report["variants"]) == {"full", "top-third-off"}
        assert report["variants"]["full"]["groups"]["vertebrae"]["dice"] == 1.0
        out = capsys.readouterr().out
        assert "vertebrae" in out and "wrote" in out

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--split", "test"], "has no “test” cases"),
            (["--variants", "sideways"], "no variant “sideways”"),
            (["--variants", ","], "--variants: “,” does not name anything"),
            (["--worst", "-1"], "--worst: “-1” is not a whole number of 0 or more"),
            (["--output", "report.txt"], "Use .json"),
            (["--checkpoint", "nobody"], "no checkpoint named"),
        ],
    )
    def test_refusals(self, dataset, tiny_checkpoint, capsys, words, said):
        before = files(dataset.parent)
        assert self.evaluate(dataset, tiny_checkpoint, *words) == 2
        assert said in capsys.readouterr().err and files(dataset.parent) == before


# --- train ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a dataset"),
        (["no.json"], "no.json does not exist"),
        (["dataset.json", "--preset", "huge"], "no preset “huge”"),
        (["dataset.json", "--set", "optimization.speed=9"], "optimization.speed"),
        (["dataset.json", "--set", "seed.x=9"], "no such setting"),
        (["dataset.json", "--set", "method.depth=9"], "depth"),
        (["dataset.json", "--steps", "0"], "greater than or equal to 1"),
        (["--resume"], "holds no run"),
        (["--resume", "--seed", "0"], "--seed cannot be given"),
        (["--resume", "--from", "tiny"], "--from cannot be given"),
    ],
)
def test_train_refusals(dataset, monkeypatch, capsys, words, said):
    monkeypatch.chdir(dataset.parent)
    before = files(dataset.parent)
    assert run("train", "--output", "run", *words) == 2
    assert said in capsys.readouterr().err and files(dataset.parent) == before


def test_training_settings(dataset, monkeypatch):
    words = ["--preset", "tiny", "--steps", "7", "--phantoms", "2", "--seed", "5", "--set", "method.rank_weight=0.25"]
    more = [
        "--set",
        "preprocessing.low=2",
        "--set",
        "data.patch=[64,64]",
        "--set",
        "data.augmentation.gamma_probability=0",
    ]
    args = cli.build_parser().parse_args(["train", str(dataset), "--output", "run", *words, *more])
    config = training_config(args)
    assert config.method["rank_weight"] == 0.25 and config.method["widths"] == [6, 8, 12]
    assert config.optimization.steps == 7 and config.data.phantoms == 2 and config.seed == 5 and config.name == "run"
    # a part that is set leaves its neighbors as they were
    assert config.preprocessing.low == 2 and config.preprocessing.pixel_mm == 1.25
    assert config.data.patch == (64, 64) and config.data.augmentation.gamma_probability == 0
    assert config.data.augmentation.bias_probability == 0.5 and config.dataset == str(dataset)


def test_training_a_checkpoint_further_keeps_its_network(dataset, tiny_checkpoint, monkeypatch):
    def config(*words):
        words = ["train", str(dataset), "--output", "run", "--from", str(tiny_checkpoint), *words]
        return training_config(cli.build_parser().parse_args(words))

    further = config()
    assert further.method["widths"] == [6, 8, 12] and further.preprocessing.pixel_mm == 2.0
    assert further.data.patch == (64, 64) and further.start_from == str(tiny_checkpoint)
    assert further.optimization.learning_rate < config("--method", "unet").optimization.learning_rate
    assert config("--set", "optimization.learning_rate=1").optimization.learning_rate == 1
    # another network takes over what fits
    assert config("--method", "unet").method["method"] == "unet"
    assert config("--preset", "small").method["widths"] != [6, 8, 12]


def train_words(dataset, *more):
    size = ["--set", "data.patch=[64,64]", "--set", "optimization.batch=2", "--set", "optimization.workers=0"]
    return ["train", dataset, "--preset", "tiny", "--output", dataset.parent / "run", "--device", "cpu", *size, *more]


@pytest.fixture
def trainable(dataset) -> Path:
    """The phantom under another name serves for training."""
    table = json.loads(dataset.read_text(encoding="utf-8"))
    (entry,) = table["validation"]
    for name in ("image", "label"):
        path = dataset.with_name(f"training_{entry[name]}")
        path.write_bytes(dataset.with_name(entry[name]).read_bytes())
    table["training"] = [{**entry, "image": "training_case.nii.gz", "label": "training_label.nii.gz"}]
    dataset.write_text(json.dumps(table), encoding="utf-8")
    return dataset


def test_train_then_segment(trainable, case, capsys):
    assert run(*train_words(trainable, "--steps", "2")) == 0
    best = case / "run/best.safetensors"
    assert f"to use it: spinesegai segment IMAGE --model {best}" in capsys.readouterr().out
    assert best.exists() and (case / "run/last.safetensors").exists()
    # Two steps find nothing or something wrong; either way all of it or nothing is there.
    code = segment(case, best)
    assert code == (0 if (case / "out.seg.nrrd").exists() else 2)
    assert run(*train_words(trainable, "--steps", "2")) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize("request_to_end", [signal.SIGINT, signal.SIGHUP])
def test_interrupted_training_is_saved_for_resuming(trainable, request_to_end):
    command = [sys.executable, "-m", "SpineSegAILib", *map(str, train_words(trainable, "--steps", "100000"))]
    status = trainable.parent / "run/status.json"

    def state() -> str:
        return json.loads(status.read_text(encoding="utf-8"))["state"] if status.exists() else "not started"

    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        deadline = time.monotonic() + 120
        while state() != "running" and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(request_to_end)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "resume with --resume --output" in err and "Traceback" not in err
    assert state() == "stopped" and status.with_name("last.safetensors").exists()
