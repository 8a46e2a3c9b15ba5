"""The training loop, under Hugging Face Accelerate: one process, `torchrun`, several nodes, mixed precision."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast, gather_object, set_seed
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from ..checkpoints import find_checkpoint, load_tensors, read_header, save_checkpoint, versions
from ..datasets.manifest import Manifest, image_key, read_manifest
from ..errors import ConfigError, DatasetError, TrainingError, is_out_of_memory
from ..evaluation.on_grid import load_labelled
from ..files import atomic_write
from ..inference.metadata import read_metadata
from ..methods.base import Batch, Method
from ..methods.catalog import build_method
from .averaging import WeightAverage, load_matching
from .clock import WorkClock
from .config import TrainingConfig
from .data import CachedCase, StepSampler, cache_case, cache_phantom
from .failures import as_training_error, first_line
from .material import Material, WindowMaterial
from .pictures import draw_curves
from .request import TrainingRequest, check_request, method_config
from .run import RunDirectory, read_saved, replace_json
from .saved_state import read_state, write_state
from .schedule import is_done, learning_rate, make_optimizer, precision, progress_of
from .snapshot import keep_case, keep_inputs, keep_start, read_snapshot, take_snapshot

_START = "start.json"
"""In a run's state: what the checkpoint it started from had learned from real cases."""
_OF_THE_NETWORK = ("calibration", "outline_quality")
"""What a checkpoint says beside its weights that was fitted to them."""
_PARTS = "parts.json"
"""In a run's state: how many parts a batch is computed in, where one of several processes found that out."""
_PLACES = {"dataset", "also", "start_from", "resources"}
"""Settings that name files of this computer: a checkpoint does not tell them."""
_LONGEST_WAIT = timedelta(days=7)
"""Of processes for each other; `torchrun` ends them all where one fails."""
_DRAW_SECONDS = 60.0
"""Between drawings of the curves, which take about half a second."""


class _LossStep(nn.Module):
    """Makes the loss the forward pass, since distributed wrappers hook into `forward`."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.training_losses(batch)


def run_training(request: TrainingRequest) -> RunDirectory:
    """Train until the steps or hours are done, or until someone asks the run to stop.

    Raises:
        TrainingError: the run directory is taken, or the loss is no longer finite.
        ConfigError, DatasetError, CheckpointError: from what the configuration names.
    """
    run = RunDirectory(request.output)
    if request.resume:
        config = run.config()
    elif request.config is None:
        raise ConfigError("A new run needs a configuration.", "Give one, or resume a run.")
    else:
        config = request.config
    return _Trainer(config, run, request).train()


class _Trainer:
    def __init__(self, config: TrainingConfig, run: RunDirectory, request: TrainingRequest) -> None:
        self.config, self.run, self.request = config, run, request
        o = config.optimization
        cpu = request.device == "cpu" or (request.device == "auto" and not torch.cuda.is_available())
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=precision(o, cpu),
            kwargs_handlers=[
                # A batch without keypoints, or without masks, leaves the heads for them without a gradient.
                DistributedDataParallelKwargs(find_unused_parameters=True),
                # One process prepares the cases and the others wait, which by default they do for minutes alone.
                InitProcessGroupKwargs(timeout=_LONGEST_WAIT),
            ],
        )
        self.main = self.accelerator.is_main_process
        if o.batch % self.accelerator.num_processes:
            raise ConfigError(
                f"A batch of {o.batch} cannot be shared by {self.accelerator.num_processes} processes.",
                "Choose a batch that is a multiple of their number.",
            )
        self.step = 0
        self.elapsed = 0.0
        self.best = -math.inf
        self.parts = 1
        self.clock = WorkClock()
        self._drawn = -math.inf

    # --- before the first step -------------------------------------------------------------------------------------

    def train(self) -> RunDirectory:
        """The whole run; whatever ends it is written down."""
        if not self.request.resume:  # what is wrong with the request is said before there is a folder
            check_request(self.config, self._manifests())
        if self.main:
            if self.request.resume:
                self.run.claim()
            else:
                self.run.create(self.config)
        self.accelerator.wait_for_everyone()
        try:
            with self.run.beating(self.clock.seconds) if self.main else nullcontext():
                self._beat("preparing", force=True)
                self._prepare()
                self._train()
        except BaseException as error:
            told = as_training_error(error, self.run, self.step)
            if told is not error:
                self._report_failure(told)
                raise told from error
            self._report_failure(error)
            raise
        finally:
            if self.main:
                self.run.release()
        return self.run

    def _report_failure(self, error: BaseException) -> None:
        """The reason, in the run's files; on a full disk, in the room that was kept for it."""
        if not self.main and isinstance(error, KeyboardInterrupt):
            return  # the others were told to end, too
        reason = str(error) or type(error).__name__
        self.run.make_room()
        with suppress(OSError):
            self.run.event("error", step=self.step, message=reason)
        with suppress(OSError):
            self.run.beat("failed", force=True, step=self.step, message=reason)

    def _manifests(self) -> list[Manifest]:
        return [read_manifest(path) for path in (self.config.dataset, *self.config.also)]

    def _prepare(self) -> None:
        """Data, method, optimizer; and where a run that is resumed was."""
        config, run, o = self.config, self.run, self.config.optimization
        if self.main and not run.dataset_file.exists():
            self._beat("preparing", force=True, message="reading the dataset")
            take_snapshot(self._manifests(), run)
        needed = config.start_from and (o.keep or not run.state_file.exists())
        if self.main and needed and not run.start.exists():
            keep_start(find_checkpoint(config.start_from).path, run)
        resources = dict(config.resources)
        with self.accelerator.main_process_first():
            if resources:
                resources = keep_inputs(resources, run)
        self.snapshot = read_snapshot(run)
        self.manifest = self.snapshot.manifest
        if self.main and self.request.resume:
            self._say_what_changed()
        set_seed(config.seed)
        self.method = build_method(method_config(config, resources))
        self.method.open_resources(resources)
        self.fresh = not run.state_file.exists()
        if self.fresh:
            self._start()
        self.origin = self._origin() if config.start_from and o.keep else {}
        self.ema = WeightAverage(self.method, o.ema) if o.ema else None
        self.optimizer = make_optimizer(o, self.method)
        if not self.fresh:
            self._load_state()
        if self.main and self.request.resume:
            run.truncate_events(self.step)
            self._event("resume", step=self.step, **({} if self.step else {"message": "from the beginning"}))

    def _start(self) -> None:
        """First weights: from another checkpoint, where one is named."""
        start = None
        if self.config.start_from:
            taken = load_matching(self.method, str(self.run.start), self.config.start_parts)
            origin = read_header(self.run.start)
            start = origin.metadata["method"]
            whole = self.config.starts_whole  # an encoder alone brings no structure with it
            validated = [s.name for s in origin.scheme.structures if whole and s.id not in origin.unvalidated]
            before = origin.metadata.get("training", {})
            cases = sorted({*before.get("cases", ()), *before.get("cases_before", ())})
            told = before.get("images") and (before.get("images_before") or not before.get("cases_before"))
            images = sorted({*before["images"], *before.get("images_before", ())}) if told else []
            total = len(self.method.state_dict())
            same = taken == total and read_metadata(origin).preprocessing == self.config.preprocessing
            known = {key: origin.metadata[key] for key in _OF_THE_NETWORK if same and key in origin.metadata}
            if self.main:
                replace_json(
                    self.run.state / _START, {"validated": validated, "cases": cases, "images": images, **known}
                )
            part = "its weights are" if taken == total else f"{taken} of {total} tensors of its weights are"
            self._event("start", message=f"{part} those of {self.config.start_from}")
        self.method.prepare_training(start)

    def _origin(self) -> dict[str, Tensor]:
        """Weights of the starting checkpoint, if all of this network's were taken from there."""
        theirs, mine = load_tensors(read_header(self.run.start)), self.method.state_dict()
        if all(k in theirs and theirs[k].shape == v.shape for k, v in mine.items()):
            return {k: theirs[k] for k, v in mine.items() if v.is_floating_point()}
        self._event(
            "note", message="The network differs from that of its starting checkpoint: their mean is not taken."
        )
        return {}

    def _say_what_changed(self) -> None:
        changed = self.snapshot.changes()
        if changed:
            names = ", ".join(path.name for path in changed[:5]) + (" …" if len(changed) > 5 else "")
            self._event(
                "note",
                message=f"{len(changed)} files are gone or have changed since the run began ({names}); "
                "it goes on with what it read then.",
            )

    # --- the loop --------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        o = self.config.optimization
        try:
            material = self._material()
        except _StoppedPreparing:
            return self._end("stopped")
        sampler = StepSampler(
            self.step, o.steps, o.batch, self.accelerator.process_index, self.accelerator.num_processes
        )
        # On a GPU the trainer augments there; on a CPU the loading processes do, beside the network.
        on_cpu = self.accelerator.device.type == "cpu"
        loader = DataLoader(
            material.dataset,
            batch_sampler=sampler,
            num_workers=o.workers,
            collate_fn=partial(_collate, material.augment) if on_cpu else None,
            worker_init_fn=_alone,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        model, optimizer = self.accelerator.prepare(_LossStep(self.method), self.optimizer)
        if self.ema:
            self.ema.to(self.accelerator.device)
        model.train()
        if self.fresh:
            self._save()  # from now on a resume needs neither the starting checkpoint nor luck
        before, first_step = self.elapsed, self.step
        started = self.clock.seconds()
        if self.step == 0 and self.config.starts_whole and self.best == -math.inf:
            self._validate(material)  # what is worse than this start is no better checkpoint
            self._save()
        sums: dict[str, Tensor] = {}
        counted = 0
        with self.run.quiet():
            batches = iter(loader)  # copies the process
        for raw in self._loaded(batches, material.cases) if not is_done(o, self.step, self.elapsed) else ():
            rate = learning_rate(o, self.step, self.elapsed)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = raw if on_cpu else material.augment(raw, self.accelerator.device)
            batch.progress = progress_of(o, self.step, self.elapsed)
            losses = self._gradients(model, optimizer, batch)
            norm = self.accelerator.clip_grad_norm_(model.parameters(), o.clip or math.inf)
            # With fp16, the scaler expects gradients that are not finite, and leaves such steps out.
            finite = bool(torch.isfinite(losses["total"])) and (
                self.accelerator.scaler is not None or bool(torch.isfinite(torch.as_tensor(norm)))
            )
            here = before + self.clock.seconds() - started
            bad, stopping, self.elapsed = self._agree(not finite, self.run.stop_requested, here)
            if bad:
                self._stop_for_bad_loss(batch, not finite)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.ema:
                self.ema.update(self.method, self.step)
            for name, value in losses.items():
                sums[name] = value.detach() + sums.get(name, 0.0)
            counted += 1
            done = is_done(o, self.step, self.elapsed)
            if counted >= o.report_every or done or stopping:
                speed = (self.step - first_step) / max(self.elapsed - before, 1e-6)
                self._event(
                    "step", step=self.step, losses=self._means(sums, counted), learning_rate=rate,
                    gradient=round(float(norm), 4), steps_per_second=round(speed, 3), elapsed=round(self.elapsed, 1),
                )  # fmt: skip
                sums, counted = {}, 0
                if not (done or stopping):  # they are drawn at the end
                    self._draw_curves(at_most_every=_DRAW_SECONDS)
            self._beat("running", step=self.step)
            if self.step % o.validate_every == 0 or done:
                self._validate(material)
                if not (done or stopping):
                    self._draw_curves()
            if self.step % o.save_every == 0 or done or stopping:
                self._save()
            if done or stopping:
                break
        self._draw_curves()
        self._end("finished" if is_done(o, self.step, self.elapsed) else "stopped")

    def _end(self, how: str) -> None:
        self._event(how, step=self.step, elapsed=round(self.elapsed, 1))
        self._beat(how, force=True, step=self.step)
        self.accelerator.wait_for_everyone()

    def _loaded(self, batches: Iterator[Any], cases: Sequence[CachedCase]) -> Iterator[Any]:
        """The batches; what goes wrong with the cache is said in words."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                lost = [case for case in cases if not case.is_whole]
                if lost:
                    raise DatasetError(
                        f"The preprocessed case {lost[0].folder} is gone or damaged.",
                        "Resume the run: it is made again if the original is unchanged.",
                    ) from error
                if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
                    raise TrainingError(
                        "A process that loads data ended unexpectedly: the computer may be short of memory.",
                        "Close other applications and resume the run.",
                    ) from error
                raise
            yield batch

    def _gradients(self, model: nn.Module, optimizer: Any, batch: Batch) -> dict[str, Tensor]:
        """Losses of the batch, their gradients in the parameters; in parts if it does not fit into memory."""
        size = len(batch.image)
        while True:
            set_seed(self.config.seed * 1_000_003 + self.step)  # dropout and the like: the same after a resume
            try:
                return self._accumulated(model, batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = first_line(error)
            optimizer.zero_grad(set_to_none=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.parts >= size:
                raise TrainingError(
                    f"Out of memory, even with one sample at a time ({message}).",
                    "Choose a smaller patch or preset, or a device with more memory.",
                )
            self.parts *= 2
            said = f"Out of memory: batches of {size} are computed in {self.parts} parts from now on"
            if self.accelerator.num_processes > 1:  # the others wait for gradients that will not come
                replace_json(self.run.state / _PARTS, {"parts": self.parts})
                raise TrainingError(f"{said}.", "Resume the run: it then does so on all devices.")
            self._event(
                "note",
                step=self.step,
                message=f"{said}: the same gradient but for losses and layers that look at the whole batch.",
            )

    def _accumulated(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`_gradients` in `self.parts` parts. A function of its own: where memory does not do, all it held is free."""
        pieces = _pieces(batch, self.parts)
        total: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces, start=1):
            last = number == len(pieces)
            with nullcontext() if last else self.accelerator.no_sync(model):
                losses = model(piece)
                share = len(piece.image) / len(batch.image)
                self.accelerator.backward(losses["total"] * share if self.parts > 1 else losses["total"])
            for name, value in losses.items():
                total[name] = value.detach() * share + total.get(name, 0.0)
        return total

    def _agree(self, bad: bool, stop: bool, elapsed: float) -> tuple[bool, bool, float]:
        """The same answer in every process, or some would wait for the others for ever.

        Returns:
            whether any process has a bad loss, whether any saw the request to stop, and the main process's time.
        """
        if self.accelerator.num_processes == 1:
            return bad, stop, elapsed
        values = torch.tensor([float(bad), float(stop), elapsed if self.main else 0.0], device=self.accelerator.device)
        bad_sum, stop_sum, seconds = self.accelerator.reduce(values, "sum").tolist()
        return bad_sum > 0, stop_sum > 0, seconds

    def _means(self, sums: Mapping[str, Tensor], counted: int) -> dict[str, float]:
        """Mean losses over steps and processes."""
        mine = {name: float(value) / counted for name, value in sums.items()}
        every = gather_object([mine]) if self.accelerator.num_processes > 1 else [mine]
        return {name: round(float(np.mean([m[name] for m in every if name in m])), 5) for name in mine}

    def _stop_for_bad_loss(self, batch: Batch, mine: bool) -> None:
        if not mine:
            raise TrainingError(f"Another process has a loss that is not a number at step {self.step}.")
        rank = self.accelerator.process_index
        path = self.run.state / f"bad_batch{f'_{rank}' if rank else ''}.safetensors"
        tensors = {k: v.detach().cpu().contiguous() for k, v in vars(batch).items() if isinstance(v, Tensor)}
        first = self.step * self.config.optimization.batch + rank * len(batch.image)
        with atomic_write(path) as (part,):
            save_file(tensors, part, {"step": str(self.step), "first_sample": str(first)})
        raise TrainingError(
            f"The loss is not a number at step {self.step}.",
            f"The batch is in {path}; try a lower learning rate.",
        )

    def _material(self) -> Material:
        """The training set, preprocessed, and what is validated."""
        cache = self.request.cache or self.run.folder / "cache"
        scheme, pre, data = self.method.scheme, self.config.preprocessing, self.config.data
        training = self.manifest.cases("training")
        kept = [case for case in self.manifest.splits.get("validation", ()) if case.label is not None]
        cases: list[CachedCase] = []
        count = len(training) + data.phantoms
        with self.accelerator.main_process_first():
            for number in range(count):
                if number < len(training):
                    cases.append(cache_case(training[number], pre, scheme, cache, self.snapshot))
                else:
                    cases.append(cache_phantom(number - len(training), self.config.seed, pre, scheme, cache))
                self._preparing(number + 1, count + len(kept))
            kept = [keep_case(case, self.snapshot, cache) for case in kept]
            if self.method.learns_from == "clicks":
                from .clicks import make_click_material

                drawn = list(zip([*training, *[None] * data.phantoms], cases, strict=True))
                shown = [(case, cache_case(case, pre, scheme, cache)) for case in kept]
                return make_click_material(
                    self.method, data, pre, self.config.seed, drawn, shown, cache, self._preparing
                )
        return WindowMaterial(self.method, self.config, cases, load_labelled(kept, pre))

    def _preparing(self, done: int, total: int) -> None:
        """Says how far the preparation is, and ends it if someone asked: what is cached is kept.

        Of several processes, which wait for each other here, none ends before its first step.
        """
        self._beat("preparing", done=done, total=total)
        if self.accelerator.num_processes == 1 and self.run.stop_requested:
            raise _StoppedPreparing

    def _validate(self, material: Material) -> None:
        if not material.validation:
            return
        self._beat("validating", force=True, step=self.step)
        self._share_buffers()
        mine = range(self.accelerator.process_index, len(material.validation), self.accelerator.num_processes)
        weights = {k: v.detach().clone() for k, v in self.method.state_dict().items()}
        self.method.load_state_dict(self._averaged())
        self.method.eval()
        scores = []
        try:
            for number in mine:
                score, draw = material.score(self.method, material.validation[number], self.accelerator.device)
                scores.append(score)
                self._beat("validating", step=self.step)
                if self.main and draw and number == 0:
                    draw(f"step {self.step}", self.run.preview)
        finally:
            self.method.train()
            self.method.load_state_dict(weights)
        scores = gather_object(scores)
        means = {k: float(np.mean([s[k] for s in scores if k in s])) for k in sorted({k for s in scores for k in s})}
        self._event(
            "validation",
            step=self.step,
            scores={k: round(v, 4) for k, v in means.items()},
            elapsed=round(self.elapsed, 1),
        )
        reached = means.get(material.criterion, -math.inf)  # nothing annotated that the scheme has
        if reached > self.best:
            self.best = reached
            self._write_checkpoint(self.run.best, means)

    def _share_buffers(self) -> None:
        """The main process's running statistics for all, as if each had been the only one."""
        if self.accelerator.num_processes > 1:
            for name, buffer in self.method.named_buffers():
                broadcast(buffer)
                if self.ema and name in self.ema.values:
                    broadcast(self.ema.values[name])

    def _draw_curves(self, at_most_every: float = 0.0) -> None:
        if self.main and time.monotonic() - self._drawn >= at_most_every:
            draw_curves(self.run.events(), self.run.curves)
            self._drawn = time.monotonic()

    # --- what is kept ----------------------------------------------------------------------------------------------

    def _averaged(self) -> dict[str, Tensor]:
        """What is validated and saved: the mean over the last steps, and with where the run started from."""
        state = self.ema.state(self.method) if self.ema else self.method.state_dict()
        keep = self.config.optimization.keep
        return state | {k: state[k].lerp(v.to(state[k].device), keep) for k, v in self.origin.items()}

    def _write_checkpoint(self, path: Path, scores: dict[str, float]) -> None:
        if not self.main:
            return
        save_checkpoint(path, self.method.export_state(self._averaged()), self.metadata(scores))

    def metadata(self, scores: dict[str, float]) -> dict[str, Any]:
        """The JSON document of a checkpoint of this run."""
        annotated = {i for case in self.manifest.cases("training") for i in case.annotated}
        scheme = self.method.scheme
        seen = {scheme.channel_for(i) for i in annotated}
        start = read_saved(self.run.state / _START)
        seen |= {scheme.channel_of[s.id] for s in scheme.structures if s.name in start.get("validated", ())}
        unvalidated = [s.name for c, s in enumerate(scheme.structures, start=1) if c not in seen]
        method = self.method.config.as_published().model_dump(mode="json")
        # Edges move little, and the start's offsets suit them better than none; how far an outline can be trusted was
        # learned from the errors of another network, once this one has made a step.
        fitted = _OF_THE_NETWORK if self.step == 0 else ("calibration",)
        known = {key: start[key] for key in fitted if key in start}
        return {
            "title": self.config.name or self.run.folder.name,
            "method": method,
            "preprocessing": self.config.preprocessing.model_dump(mode="json"),
            "patch": list(self.config.data.patch),
            "unvalidated": unvalidated,
            "training": {
                "dataset": self.manifest.name,
                "cases": [c.name for c in self.manifest.cases("training")],
                "images": [image_key(self.snapshot.checksums[str(c.image)]) for c in self.manifest.cases("training")],
                "cases_before": start.get("cases", []),  # of the checkpoint that it started from, and of that one's
                "images_before": start.get("images", []),
                "phantoms": self.config.data.phantoms,
                "seed": self.config.seed,
                "steps": self.step,
                "hours": round(self.elapsed / 3600, 3),
                "date": time.strftime("%Y-%m-%d"),
                "versions": versions(),
                "configuration": self.config.model_dump(mode="json", exclude=_PLACES) | {"method": method},
            },
            "validation": scores,
            **known,
        }

    def _save(self) -> None:
        if self.main:
            scaler = self.accelerator.scaler
            numbers = {
                "step": self.step,
                "elapsed": self.elapsed,
                "best": self.best,
                "parts": self.parts,
                "scale": scaler.get_scale() if scaler else "",
            }
            write_state(self.run.state_file, self.method, self.ema, self.optimizer, numbers)
            self._write_checkpoint(self.run.last, {})
        self.accelerator.wait_for_everyone()

    def _load_state(self) -> None:
        try:
            numbers = read_state(self.run.state_file, self.method, self.ema, self.optimizer)
        except (SafetensorError, OSError) as error:
            raise TrainingError(
                f"The saved state {self.run.state_file} is damaged ({error}): the run cannot be resumed.",
                f"Start a new run from its checkpoint: --from {self.run.last}.",
            ) from error
        self.step = int(numbers["step"])
        self.elapsed = float(numbers["elapsed"])
        self.best = float(numbers["best"])
        self.parts = max(int(numbers.get("parts", 1)), int(read_saved(self.run.state / _PARTS).get("parts", 1)))
        scaler = self.accelerator.scaler
        if scaler and numbers.get("scale"):
            scaler.load_state_dict({**scaler.state_dict(), "scale": float(numbers["scale"])})

    # --- reports ---------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **values: Any) -> None:
        if not self.main:
            return
        self.run.event(kind, **values)
        if self.request.report:
            self.request.report({"event": kind, **values})

    def _beat(self, state: str, *, force: bool = False, **values: Any) -> None:
        if self.main:
            self.run.beat(state, force=force, steps=self.config.optimization.steps, elapsed=self.elapsed, **values)


class _StoppedPreparing(Exception):
    """Someone asked the run to stop before its first step."""


def _pieces(batch: Batch, parts: int) -> list[Batch]:
    """The batch in up to `parts` pieces of about the same size."""
    if parts == 1:
        return [batch]
    size = len(batch.image)
    cuts = np.linspace(0, size, min(parts, size) + 1).round().astype(int).tolist()
    return [batch.each(itemgetter(slice(low, high))) for low, high in pairwise(cuts)]


def _collate(augment: Callable[[Any, torch.device], Batch], items: list[dict[str, Any]]) -> Batch:
    return augment(default_collate(items), torch.device("cpu"))


def _alone(worker: int) -> None:
    """A data loader's process: with one thread, and out of reach of what ends a group of processes (Ctrl-C, `timeout`),
    which is the trainer's to answer. It ends when the trainer does."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
