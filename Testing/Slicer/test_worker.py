"""The worker process by itself: protocol, faults, cancel, what it costs. Real processes, no Qt."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SpineSegAILib import __version__
from SpineSegAILib.hints import Anchor, Hints
from SpineSegAILib.worker.protocol import (
    EVENT,
    PROTOCOL,
    CancelRequest,
    DeviceRequest,
    DicomSegRequest,
    HintsMessage,
    MeasureRequest,
    ReportRequest,
    SegmentRequest,
    load_image,
    save_image,
)

ROOT = Path(__file__).parents[2]
DOUBLE = [str(Path(__file__).with_name("double_worker.py"))]
REAL = ["-m", "SpineSegAILib.worker"]


class Process:
    """A worker, and its events as they come."""

    def __init__(self, folder, arguments=DOUBLE, options=(), **environment):
        self.folder = folder
        path = os.pathsep.join([*environment.pop("paths", []), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, *arguments, "--folder", str(folder), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path, **environment},
        )  # fmt: skip
        self.lines, self.log = [], []
        self.events = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            self.events.put(EVENT.validate_json(line))

    def send(self, message):
        self.process.stdin.write((message if isinstance(message, str) else message.model_dump_json()) + "\n")
        self.process.stdin.flush()

    def next(self, *kinds, seconds=60):
        """The next event of these kinds; others are passed over."""
        end = time.monotonic() + seconds
        while True:
            event = self.events.get(timeout=max(0.01, end - time.monotonic()))
            if not kinds or event.event in kinds:
                return event

    def end(self, seconds=10):
        self.process.stdin.close()
        return self.process.wait(seconds)


@pytest.fixture
def start(tmp_path):
    """Starts workers and sees that none is left."""
    running = []

    def make(*arguments, **named):
        folder = tmp_path / f"worker{len(running)}"
        folder.mkdir()
        running.append(Process(folder, *arguments, **named))
        return running[-1]

    yield make
    for one in running:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def image():
    array = np.random.default_rng(1).integers(1, 100, (5, 40, 30)).astype(np.int16)
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((1.25, 1.0, 4.0))
    made.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))
    return made


def request(worker, image, job=1, checkpoint="double", **named):
    return SegmentRequest(
        job=job, image=save_image(image, worker.folder / f"{job}.npy"), checkpoint=checkpoint, **named
    )


def test_it_says_who_it_is_then_answers(start, image):
    worker = start()
    ready = worker.next("ready")
    assert (ready.protocol, ready.version) == (PROTOCOL, __version__)
    assert ready.pid > 0
    worker.send(request(worker, image))
    assert 0 <= worker.next("progress").fraction <= 1
    result = worker.next("segmentation").result.segmentation()
    assert result.labels.GetSize() == image.GetSize()
    np.testing.assert_allclose(result.labels.GetDirection(), image.GetDirection())
    assert result.present == [20, 120, 21, 121, 22, 122, 23, 123, 24, 124, 26]  # the unvalidated canal is left out
    assert result.warnings and result.scheme.name == "lumbar-mr"


def test_nothing_found_is_an_error_that_leaves_everything_as_it_was(start, image):
    worker = start()
    empty = sitk.Image(image.GetSize(), sitk.sitkInt16)
    empty.CopyInformation(image)
    worker.send(request(worker, empty))
    error = worker.next("error")
    assert (error.kind, error.message) == ("ImageError", "No spine was found in the image.") and error.remedy


def test_only_events_reach_standard_output_whatever_libraries_print(start, image):
    worker = start(DOUBLE_NOISE="1")
    worker.send(request(worker, image))
    worker.next("segmentation")
    assert all(json.loads(line)["event"] for line in worker.lines)
    worker.end()
    log = "".join(worker.log)
    assert "a library says hello" in log and "so does a C program" in log


def test_hints_arrive_as_they_were_given(tmp_path, image):
    hints = Hints(
        visible=(18, 26), anchors=(Anchor(24, (1.0, 2.0, 3.0)),), keypoints={22: (4.0, 5.0, 6.0)}, prior=image,
        locked=image, structures=(20, 21),
    )  # fmt: skip
    again = HintsMessage.model_validate_json(HintsMessage.of(hints, tmp_path).model_dump_json()).hints()
    assert (again.visible, again.anchors, again.keypoints, again.structures) == (
        hints.visible, hints.anchors, hints.keypoints, hints.structures,
    )  # fmt: skip
    for one in (again.prior, again.locked):
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(one), sitk.GetArrayViewFromImage(image))


def test_an_image_passes_a_file_unchanged(tmp_path, image):
    again = load_image(save_image(image, tmp_path / "x.npy"))
    assert again.GetOrigin() == image.GetOrigin() and again.GetDirection() == image.GetDirection()
    assert again.GetPixelID() == image.GetPixelID()
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(again), sitk.GetArrayViewFromImage(image))


def test_paths_may_hold_any_letter(start, image, tmp_path):
    folder = tmp_path / "Wirbelsäule 脊椎"
    folder.mkdir()
    worker = start(PYTHONIOENCODING="ascii")
    file = save_image(image, folder / "bild.npy")
    worker.send(SegmentRequest(job=1, image=file, checkpoint=str(folder / "prüfung.safetensors")))
    event = worker.next("segmentation", "error")
    assert event.event == "segmentation", event
    assert event.result.document["provenance"]["checkpoint"].endswith("prüfung.safetensors")


def test_cancel_stops_within_a_second_and_the_worker_goes_on(start, image):
    worker = start(DOUBLE_SECONDS="30")
    worker.send(request(worker, image))
    worker.next("progress")
    worker.next("progress")
    begun = time.monotonic()
    worker.send(CancelRequest(job=1))
    event = worker.next("error")
    assert event.kind == "Cancelled" and time.monotonic() - begun < 1.0
    worker.send(DeviceRequest(job=2, device="cpu"))
    assert worker.next("device").job == 2


def test_a_waiting_job_can_be_cancelled(start, image):
    worker = start(DOUBLE_SECONDS="0.5")
    worker.send(request(worker, image, job=1))
    worker.send(request(worker, image, job=2))
    worker.send(CancelRequest(job=2))
    assert worker.next("segmentation").job == 1
    event = worker.next("error")
    assert (event.job, event.kind) == (2, "Cancelled")


def test_a_worker_that_is_slow_to_stop_says_that_it_is_alive_and_then_no_more(start, image):
    worker = start(DOUBLE_SECONDS="60", DOUBLE_SLOW="1.5")  # after Cancel, however late that arrives
    worker.send(request(worker, image))
    while worker.next("progress").message != "Computing":  # where it is asked before, it ends at once
        pass
    worker.send(CancelRequest(job=1))
    while worker.next("progress").message != "Stopping":
        pass
    assert worker.next("error").kind == "Cancelled"
    worker.send(CancelRequest(job=1))  # too late: there is nothing to stop
    worker.send(DeviceRequest(job=2, device="cpu"))
    assert worker.next().event == "device"  # nothing of the job that was answered comes in between
    time.sleep(0.7)
    assert worker.events.empty()


def test_a_report_is_written_to_the_file(start, image, tmp_path):
    worker = start(DOUBLE_SECONDS="0.1")
    worker.send(request(worker, image))
    result = worker.next("segmentation").result
    path = tmp_path / "report.html"
    about = {"title": "A <case>", "source": "nowhere.nii.gz", "path": str(path)}
    report = ReportRequest(job=2, image=save_image(image, worker.folder / "r.npy"), result=result, **about)
    worker.send(report)
    assert worker.next("written", "error", seconds=180).event == "written"  # fonts are looked for the first time
    page = path.read_text(encoding="utf-8")
    assert "A &lt;case&gt;" in page and "L4/L5" in page and "nowhere" not in page
    (tmp_path / "file").write_text("")
    worker.send(report.model_copy(update={"job": 3, "path": str(tmp_path / "file" / "report.pdf")}))
    event = worker.next("written", "error")
    assert (event.event, event.kind) == ("error", "OutputError")


def test_a_dicom_segmentation_of_what_is_not_dicom_is_refused(start, image, tmp_path):
    worker = start(DOUBLE_SECONDS="0.1")
    worker.send(request(worker, image))
    result = worker.next("segmentation").result
    path = tmp_path / "out.dcm"
    source = tmp_path / "image.nii.gz"
    source.write_bytes(b"not DICOM")
    worker.send(DicomSegRequest(job=2, result=result, source=str(source), path=str(path)))
    event = worker.next("written", "error")
    assert (event.event, event.kind) == ("error", "OutputError") and "is not DICOM" in event.message
    assert not path.exists()


def test_a_foreseeable_failure_is_an_event_with_its_remedy(start, image):
    worker = start(DOUBLE_FAIL="ImageError")
    worker.send(request(worker, image))
    event = worker.next("error")
    assert (event.kind, event.message, event.remedy) == (
        "ImageError",
        "It went wrong on purpose.",
        "Do something else.",
    )


def test_a_defect_is_an_event_and_the_worker_lives_on(start, image):
    worker = start(DOUBLE_FAIL="ZeroDivisionError")
    for job in (1, 2):
        worker.send(request(worker, image, job=job))
        event = worker.next("error")
        assert event.job == job and event.kind == "InternalError" and "Traceback" in event.traceback
        assert "This is a bug in SpineSegAI" in event.remedy


ODD_LINES = [
    b"this is not JSON", b'{"op": "segment", "job": 1}', b"\xff\xfe\x00{", b'{"op": "measure\xe9"}', b"[" * 200_000,
    b'{"a":' * 100_000, b'{"op": "fly", "job": 1}', b"null", b"5", b"[]", b'"x"', b"{}", b"1e999999", b"9" * 10_000,
    b'{"op": "cancel", "job": 1e400}', b'{"op": "cancel", "job": -1}',
    b'{"op": "cancel", "job": ' + b"9" * 5000 + b"}", b'{"op": "device", "job": 1, "device": "\\ud800"}', b"\0",
    b'{"op": "cancel"}' + b" " * (2**26 + 10),
]  # fmt: skip


def test_every_line_is_answered_and_the_worker_lives_on(start):
    worker = start()
    worker.next("ready")
    for line in ODD_LINES:
        worker.process.stdin.buffer.write(line + b"\n")
        worker.process.stdin.flush()
        assert worker.next("error", seconds=20).kind in ("ProtocolError", "DeviceError"), line[:50]
    worker.send(DeviceRequest(job=3, device="nothing"))
    assert worker.next("error").job == 3


def spoil(kind, worker, image):
    """A request that something foreseeable is wrong with."""
    asked = request(worker, image)
    path = Path(asked.image.path)
    document = asked.model_dump(mode="json")
    match kind:
        case "gone":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "damaged":
            path.write_bytes(path.read_bytes()[:200])
        case "no array":
            path.write_bytes(b"hello")
        case "pickled":
            np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        case "archive":
            np.savez(path.with_suffix(""), a=np.zeros(3))
            path.with_suffix(".npz").rename(path)
        case "flat":
            np.save(path, np.zeros((4, 4), np.int16))
        case "empty":
            np.save(path, np.zeros((0, 4, 4), np.int16))
        case "of text":
            np.save(path, np.full((3, 3, 3), "x"))
        case "no spacing":
            document["image"]["spacing"] = [0, 1, 1]
        case "negative spacing":
            document["image"]["spacing"] = [-1, 1, 1]
        case "no direction":
            document["image"]["direction"] = [0] * 9
        case "nul":
            document["image"]["path"] = "a\0b"
        case "long":
            document["image"]["path"] = "x" * 10_000
        case "no structure":
            document["hints"]["structures"] = [999]
        case "no level":
            document["hints"]["anchors"] = [[999, [0, 0, 0]]]
        case "no vertebra":
            document["hints"]["visible"] = [61, 26]
        case "no folder":
            worker.folder.chmod(0o500)
            path.parent.rename(worker.folder.with_name("moved"))
            worker.folder.write_text("a file")
            document["image"]["path"] = str(worker.folder.with_name("moved") / path.name)
    return json.dumps(document)


@pytest.mark.parametrize(
    "kind",
    [
        "gone", "folder", "damaged", "no array", "pickled", "archive", "flat", "empty", "of text", "no spacing",
        "negative spacing", "no direction", "nul", "long", "no structure", "no level", "no vertebra", "no folder",
    ],
)  # fmt: skip
def test_foreseeable_faults_are_no_defects(start, image, kind):
    worker = start()
    worker.next("ready")
    worker.send(spoil(kind, worker, image))
    event = worker.next("error", "segmentation", seconds=20)
    assert event.event == "error" and event.kind != "InternalError" and event.remedy and not event.traceback


def test_a_damaged_result_is_no_defect_of_measuring(start, image):
    worker = start()
    worker.send(request(worker, image))
    result = worker.next("segmentation").result
    for document in ({}, {"scheme": 5}, {**result.document, "version": "x"}, {**result.document, "structures": [1]},
                     {**result.document, "keypoints_lps_mm": {"999": [1, 2, 3]}}):  # fmt: skip
        worker.send(MeasureRequest(job=2, result=result.model_copy(update={"document": document})))
        assert worker.next("error").kind == "ImageError"


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no such requests here")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_request_to_end_leaves_nothing_behind(start, image, number):
    worker = start(DOUBLE_SECONDS="60", DOUBLE_STUBBORN="1")
    worker.send(request(worker, image))
    worker.next("progress")
    worker.process.send_signal(getattr(signal, number))
    assert worker.process.wait(5) == 128 + getattr(signal, number)
    assert not worker.folder.exists()


def test_it_ends_when_its_input_closes_even_while_computing(start, image):
    worker = start(DOUBLE_SECONDS="60", DOUBLE_STUBBORN="1")
    worker.send(request(worker, image))
    worker.next("progress")
    assert worker.end(seconds=3) == 0
    assert not worker.folder.exists(), "the temporary folder is left"


@pytest.mark.parametrize("by_name", [False, True])
def test_the_same_checkpoint_is_loaded_once_and_a_changed_file_again(start, image, tmp_path, by_name):
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"1")
    checkpoint = "c" if by_name else str(path)
    worker = start(SPINESEGAI_CHECKPOINTS=str(tmp_path))
    for job in (1, 2):
        worker.send(request(worker, image, job=job, checkpoint=checkpoint))
        worker.next("segmentation")
    os.utime(path, (1, 1))
    worker.send(request(worker, image, job=3, checkpoint=checkpoint))
    worker.next("segmentation")
    worker.end()
    assert sum("LOADED" in line for line in worker.log) == 2


def test_an_idle_worker_gives_the_model_back(start, image):
    worker = start(options=("--idle", "0.3"))
    worker.send(request(worker, image))
    worker.next("segmentation")
    end = time.monotonic() + 10
    while not any("Model released" in line for line in worker.log) and time.monotonic() < end:
        time.sleep(0.05)
    worker.send(request(worker, image, job=2))
    worker.next("segmentation")
    worker.end()
    assert sum("LOADED" in line for line in worker.log) == 2


def test_measurements_are_a_table(start, image):
    worker = start()
    worker.send(request(worker, image))
    result = worker.next("segmentation").result
    worker.send(MeasureRequest(job=2, result=result))
    table = worker.next("measurements", "error")
    assert table.event == "measurements", table
    keys = [column.key for column in table.columns]
    assert keys[0] == "name" and "volume_ml" in keys and not any("lps" in key for key in keys)
    assert len(table.rows) == 12  # and the spine as a whole


# --- with the real predictor -----------------------------------------------------------------------------------------


def test_without_torch_it_says_so(start, image, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('DLL load failed while importing _C', name='torch')")
    worker = start(REAL, paths=[str(tmp_path)])
    worker.next("ready")
    worker.send(request(worker, image))
    event = worker.next("error")
    assert event.kind == "MissingPackageError" and "torch" in event.message and event.remedy


def test_a_real_checkpoint_through_a_real_worker(start, image, tiny_checkpoint):
    worker = start(REAL)
    assert worker.next("ready", seconds=30)
    worker.send(DeviceRequest(job=1, device="cpu"))
    device = worker.next("device", "error", seconds=120)
    assert device.device == "cpu" and "thread" in device.name
    worker.send(request(worker, image, job=2, checkpoint=str(tiny_checkpoint), device="cpu"))
    event = worker.next("segmentation", "error", seconds=120)
    assert event.event == "segmentation", event
    assert event.result.document["provenance"]["checkpoint"] == "tiny"
    worker.send(request(worker, image, job=3, checkpoint=str(tiny_checkpoint.with_name("gone.safetensors"))))
    event = worker.next("segmentation", "error", seconds=60)
    assert event.kind == "CheckpointError" and "gone.safetensors" in event.message
    worker.send(DeviceRequest(job=4, device="cuda:99"))
    assert worker.next("error").kind == "DeviceError"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_it_dies_when_it_is_killed(start, image):
    worker = start(DOUBLE_SECONDS="30")
    worker.send(request(worker, image))
    worker.next("progress")
    os.kill(worker.next("progress") and worker.process.pid, signal.SIGKILL)
    assert worker.process.wait(5) == -signal.SIGKILL
