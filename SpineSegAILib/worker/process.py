"""The warm process behind the panel: ``python -m SpineSegAILib.worker --folder DIR``.

It reads requests from standard input and writes events to standard output (`worker.protocol`), keeps the last model on
the device between requests, and gives the device free after idling. Whatever libraries print goes to standard error,
which is the log. It ends when its standard input closes, so it never outlives the program that started it.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TextIO

import SimpleITK as sitk

from .. import __version__
from ..checkpoints import SUFFIX, checkpoint_folders
from ..errors import Cancelled, MissingPackageError, OutputError, SpineSegAIError
from ..imaging import refuse_labels
from ..methods.catalog import CLICK_CHECKPOINT
from ..results import drop_unvalidated, require_structures
from .protocol import (
    PROTOCOL,
    REQUEST,
    CancelRequest,
    DeviceEvent,
    DeviceRequest,
    DicomSegRequest,
    ErrorEvent,
    MeasureEvent,
    MeasureRequest,
    Message,
    ProgressEvent,
    ReadyEvent,
    RefineEvent,
    RefineRequest,
    ReportRequest,
    ResultMessage,
    SegmentEvent,
    SegmentRequest,
    WrittenEvent,
    load_image,
)

IDLE_SECONDS = 600.0
"""A model that nobody asked for during ten minutes gives its memory back; loading it again costs seconds."""

ALIVE_SECONDS = 0.5
"""How often a worker that was asked to stop says that it is still there, until it has stopped."""

LONGEST_LINE = 2**26
"""Bytes of a request: keypoints of a whole spine, and a result's document with a long log, have some thousands."""

MakePredictor = Callable[[str, str], Any]
"""(checkpoint, device) → object with the `segment` method of `inference.Predictor`."""


def default_predictor(checkpoint: str, device: str) -> Any:
    """`inference.Predictor` for a checkpoint's name or file."""
    from ..inference import Predictor

    return Predictor(checkpoint, device)


class Worker:
    """Takes requests one after the other; only `cancel` overtakes.

    Args:
        output: where events go.
        folder: private folder for voxels; results of job n go into ``job<n>``.
        make_predictor: loads a checkpoint onto a device.
        idle_seconds: time without request after which the model is released.
    """

    def __init__(
        self,
        output: TextIO,
        folder: Path,
        make_predictor: MakePredictor = default_predictor,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._output = output
        self._output_lock = threading.Lock()
        self._folder = folder
        self._make_predictor = make_predictor
        self._idle_seconds = idle_seconds
        self._requests: queue.Queue[Message | None] = queue.Queue()
        self._unanswered: set[int] = set()
        self._cancelled: set[int] = set()
        self._loaded: tuple[tuple[str, str, float], Any] | None = None
        self._clicked: tuple[tuple[str, float], Any] | None = None

    # --- input (its own thread) ---------------------------------------------------------------------------------------

    def read(self, lines: Iterable[bytes]) -> None:
        """Queue the requests of `lines` until they end; what is not a request is answered."""
        for line in lines:
            if not line.strip():
                continue
            try:
                if len(line) > LONGEST_LINE:
                    raise ValueError(f"a line is longer than {LONGEST_LINE} bytes")
                request = REQUEST.validate_json(line)
            except (ValueError, RecursionError, OverflowError, MemoryError) as error:
                self._send(ErrorEvent(job=None, kind="ProtocolError", message=f"Not a request: {error}"))
                continue
            if isinstance(request, CancelRequest):
                if request.job in self._unanswered:
                    self._cancelled.add(request.job)
                    threading.Thread(target=self._say_alive, args=(request.job,), daemon=True).start()
            else:
                self._unanswered.add(request.job)
                self._requests.put(request)
        self._requests.put(None)

    def _say_alive(self, job: int) -> None:
        """On a busy computer it may take a while until work comes to a place where it can stop."""
        while job in self._unanswered:
            self._progress(job, 0.0, "Stopping")
            time.sleep(ALIVE_SECONDS)

    # --- work (the main thread) ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Say hello, then answer requests until there are no more."""
        self._send(ReadyEvent(protocol=PROTOCOL, version=__version__, pid=os.getpid()))
        while True:
            try:
                request = self._requests.get(timeout=self._idle_seconds)
            except queue.Empty:
                self._release()
                continue
            if request is None:
                return
            self._answer(request)

    def _answer(self, request: Any) -> None:
        job = request.job
        try:
            if job in self._cancelled:
                raise Cancelled("Cancelled.")
            if isinstance(request, SegmentRequest):
                self._reply(self._segment(request))
            elif isinstance(request, MeasureRequest):
                self._reply(self._measure(request))
            elif isinstance(request, ReportRequest):
                self._reply(self._report(request))
            elif isinstance(request, DicomSegRequest):
                self._reply(self._dicom_seg(request))
            elif isinstance(request, RefineRequest):
                self._reply(self._refine(request))
            elif isinstance(request, DeviceRequest):
                self._reply(self._describe(request))
        except SpineSegAIError as error:
            self._reply(ErrorEvent(job=job, kind=error.kind, message=error.message, remedy=error.remedy))
        except OSError as error:
            traceback.print_exc(file=sys.stderr)
            failed = OutputError(f"Reading or writing failed: {error}.", "Is the disk full, or the folder protected?")
            self._reply(ErrorEvent(job=job, kind=failed.kind, message=failed.message, remedy=failed.remedy))
        except ImportError as error:
            traceback.print_exc(file=sys.stderr)
            missing = MissingPackageError(
                f"The Python package {error.name or ''} cannot be loaded: {error}",
                "Install the packages that SpineSegAI asks for, or repair the installation, and try again.",
            )
            self._reply(ErrorEvent(job=job, kind=missing.kind, message=missing.message, remedy=missing.remedy))
        except Exception as error:  # the boundary of the process: a defect becomes a message, and the worker lives on
            text = traceback.format_exc()
            print(text, file=sys.stderr, flush=True)
            self._reply(
                ErrorEvent(
                    job=job,
                    kind="InternalError",
                    message=f"{type(error).__name__}: {error}",
                    remedy="This is a bug in SpineSegAI; please report it with the log.",
                    traceback=text,
                )
            )
        finally:
            self._cancelled.discard(job)

    def _reply(self, event: Any) -> None:
        """The answer to a request; nothing is said of its job after it."""
        with self._output_lock:
            self._unanswered.discard(event.job)
        self._send(event)

    def _segment(self, request: SegmentRequest) -> SegmentEvent:
        job = request.job
        image = load_image(request.image)
        refuse_labels(image)
        self._progress(job, 0.0, "Loading the checkpoint")
        predictor = self._predictor(request.checkpoint, request.device)
        hints = request.hints.hints()  # now that the structures that the checkpoint adds are known
        if job in self._cancelled:
            raise Cancelled("Cancelled.")
        result = predictor.segment(
            image,
            hints=hints,
            options=request.options,
            progress=lambda fraction, message: self._progress(job, fraction, message),
            cancelled=lambda: job in self._cancelled,
        )
        if job in self._cancelled:
            raise Cancelled("Cancelled.")
        require_structures(result, "No spine was found in the image.")
        if not request.include_unvalidated:
            result = drop_unvalidated(result, hints.locked, "Choose “Experimental structures”")
        folder = self._folder / f"job{job}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # systems clean up what is temporary
        return SegmentEvent(job=job, result=ResultMessage.of(result, folder, "result"))

    def _measure(self, request: MeasureRequest) -> MeasureEvent:
        from ..results.measurement_table import measurement_table

        columns, rows = measurement_table(request.result.segmentation())
        return MeasureEvent(job=request.job, columns=columns, rows=rows)

    def _report(self, request: ReportRequest) -> WrittenEvent:
        from ..results.measurement import measure_all
        from ..results.report import write_report

        image, result = load_image(request.image), request.result.segmentation()
        write_report(
            image,
            result,
            request.path,
            source=request.source,
            rows=measure_all(result),
            patient=request.patient,
            title=request.title,
        )
        return WrittenEvent(job=request.job, path=request.path)

    def _dicom_seg(self, request: DicomSegRequest) -> WrittenEvent:
        import pydicom

        from ..results.dicom_seg import write_dicom_seg

        path = write_dicom_seg(request.result.segmentation(), request.source, request.path)
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        return WrittenEvent(job=request.job, path=request.path, uid=header.SOPInstanceUID)

    def _refine(self, request: RefineRequest) -> RefineEvent:
        import numpy as np

        from ..correction import click_correction

        image, labels = load_image(request.image), load_image(request.labels)
        clicks, earlier = ([message.click() for message in some] for some in (request.clicks, request.earlier))
        method = self._click_method(request.checkpoint)
        correction = click_correction(image, labels, clicks, method, locked=request.locked, earlier=earlier)
        told = {"words": correction.words, "details": dict(correction.details)}
        if correction.patch is None:
            return RefineEvent(job=request.job, **told)
        folder = self._folder / f"job{request.job}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # systems clean up what is temporary
        np.save(folder / "box.npy", correction.patch.labels)
        slices, rows, columns = correction.patch.box
        return RefineEvent(
            job=request.job,
            corner=(slices.start, rows.start, columns.start),
            labels=str(folder / "box.npy"),
            structures=tuple(sorted(correction.redrawn(sitk.GetArrayViewFromImage(labels)))),
            **told,
        )

    def _click_method(self, checkpoint: str) -> Any:
        """The method that takes clicks, kept beside the model that segments: it is small."""
        from ..correction import load_click_method

        changed = _last_change(checkpoint or CLICK_CHECKPOINT)
        if self._clicked is None or self._clicked[0] != (checkpoint, changed):
            self._clicked = ((checkpoint, changed), load_click_method(checkpoint or None))
        return self._clicked[1]

    def _describe(self, request: DeviceRequest) -> DeviceEvent:
        import torch

        from ..inference import choose_device

        device = choose_device(request.device)
        threads = torch.get_num_threads()
        names = {"cpu": f"{threads} thread{'s' if threads > 1 else ''}", "mps": "Apple GPU"}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else names[device.type]
        return DeviceEvent(job=request.job, device=str(device), name=name)

    def _predictor(self, checkpoint: str, device: str) -> Any:
        """The predictor of a checkpoint, loaded only if it is another one, or a file that has changed."""
        key = (checkpoint, device, _last_change(checkpoint))
        if self._loaded is None or self._loaded[0] != key:
            self._release()
            self._loaded = (key, self._make_predictor(checkpoint, device))
        return self._loaded[1]

    def _release(self) -> None:
        self._clicked = None
        if self._loaded is None:
            return
        self._loaded = None
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()
        print("Model released.", file=sys.stderr, flush=True)

    def _progress(self, job: int, fraction: float, message: str) -> None:
        self._send(ProgressEvent(job=job, fraction=min(max(float(fraction), 0.0), 1.0), message=message))

    def _send(self, event: Message) -> None:
        with self._output_lock:
            if isinstance(event, ProgressEvent) and event.job not in self._unanswered:
                return  # it was answered while this was made
            self._output.write(_line(event))
            self._output.flush()


def _last_change(checkpoint: str) -> float:
    """When the file of a checkpoint, given by its path or name, was changed last; 0 if it is not found."""
    for path in (Path(checkpoint), *(folder / f"{checkpoint}{SUFFIX}" for folder in checkpoint_folders())):
        with suppress(OSError, ValueError):
            if path.is_file():
                return path.stat().st_mtime
    return 0.0


def _line(event: Message) -> str:
    """A message as a line; what cannot be written in UTF-8, such as half a character of a file's name, becomes “?”."""
    try:
        return event.model_dump_json() + "\n"
    except ValueError:
        return json.dumps(event.model_dump(mode="python"), default=str) + "\n"


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a stream; of longer ones than a request can be, the beginning."""
    while line := stream.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            line = stream.readline(LONGEST_LINE + 1)


def _end_on_signals(folder: Path) -> None:
    """A request to end is heard while a network computes, and leaves nothing behind.

    A thread waits for it: Python's own handlers run between two steps of the main thread, which may be seconds apart.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows knows no such requests
        return
    ending = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)

    def wait() -> None:
        number = signal.sigwait(ending)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str] | None = None, make_predictor: MakePredictor = default_predictor) -> int:
    """Run a worker on this process's standard streams until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m SpineSegAILib.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="private folder for voxels; removed at the end")
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help="seconds until an unused model is released")
    options = parser.parse_args(arguments)

    # Events get a stream of their own; from here on, print() and C++ libraries write to the log.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.stdout = sys.stderr
    requests = os.fdopen(os.dup(0), "rb")
    _end_on_signals(options.folder)

    worker = Worker(output, options.folder, make_predictor, options.idle)

    def read() -> None:
        worker.read(_lines(requests))
        # Whoever started us is gone: a running computation is of no use to anyone.
        shutil.rmtree(options.folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    try:
        worker.run()
    except BrokenPipeError:
        pass
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    return 0
