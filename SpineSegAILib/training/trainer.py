"""The training loop, under Hugging Face Accelerate: one process, `torchrun`, several nodes, mixed precision."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from ..anatomy import Extent, laterality
from ..checkpoints import find_checkpoint, load_tensors, save_checkpoint, versions
from ..datasets.manifest import Manifest, read_manifest
from ..errors import ConfigError, TrainingError
from ..files import staged
from ..methods.base import Batch, Method
from ..methods.catalog import build_method, make_config
from .augmentation import Augmenter
from .config import OptimizationConfig, TrainingConfig
from .data import CachedCase, SampleDataset, StepSampler, cache_case, cache_phantom
from .run import RunDirectory
from .validation import ValidationCase, load_validation, validate

_START = "start.json"
"""In a run's state: what the checkpoint it started from had learnt from real cases."""

Report = Callable[[dict[str, Any]], None]


@dataclass
class TrainingRequest:
    """What `spinesegai train` asks for.

    Attributes:
        config: of a new run; ignored when resuming.
        output: run directory.
        resume: go on with the run that is there.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        cache: folder for preprocessed cases; inside the run directory where not given.
        report: called with each event of the main process.
    """

    config: TrainingConfig | None
    output: Path
    resume: bool = False
    device: str = "auto"
    cache: Path | None = None
    report: Report | None = None


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
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=_precision(o, cpu))
        if o.batch % self.accelerator.num_processes:
            raise ConfigError(
                f"A batch of {o.batch} cannot be shared by {self.accelerator.num_processes} processes.",
                "Choose a batch that is a multiple of their number.",
            )
        values = dict(config.method)
        method_config = make_config(values.pop("method"), **values).with_resources(config.resources)
        self.manifest = read_manifest(config.dataset)
        _check_extent(self.manifest, method_config.label_scheme.extent)
        if self.accelerator.is_main_process:
            if not request.resume:
                run.create(config)
            run.claim()
        self.accelerator.wait_for_everyone()
        run.state.mkdir(exist_ok=True)
        set_seed(config.seed)
        self.method = build_method(method_config)
        self.method.open_resources(config.resources)
        _check_patch(config.data.patch, self.method)
        self.step = 0
        self.elapsed = 0.0
        self.best = -math.inf
        start = None
        if config.start_from and not request.resume:
            taken = load_matching(self.method, config.start_from)
            origin = find_checkpoint(config.start_from)
            start = origin.metadata["method"]
            validated = [s.name for s in origin.scheme.structures if s.id not in origin.unvalidated]
            if self.accelerator.is_main_process:
                (run.state / _START).write_text(json.dumps({"validated": validated}), encoding="utf-8")
            self._event("start", message=f"{taken} of {len(self.method.state_dict())} tensors from {config.start_from}")
        if not request.resume:
            self.method.prepare_training(start)
        self.ema = _Average(self.method, o.ema) if o.ema else None
        decay = [p for p in self.method.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.method.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=o.learning_rate)
        if request.resume:
            self._load_state()

    # --- the loop --------------------------------------------------------------------------------------------------

    def train(self) -> RunDirectory:
        try:
            self._train()
        except BaseException as error:
            if self.accelerator.is_main_process:
                reason = str(error) or type(error).__name__
                self._event("error", step=self.step, message=reason)
                self.run.beat("failed", force=True, step=self.step, message=reason)
            raise
        return self.run

    def _train(self) -> None:
        o, data = self.config.optimization, self.config.data
        self._beat("preparing", force=True)
        cases, validation = self._cases()
        dataset = SampleDataset(cases, self.method.scheme, data, self.config.seed, self.config.preprocessing.padding)
        augmentation = data.augmentation
        if any(laterality(i) for i in self.method.scheme.ids):  # a mirrored left lung is not a right one
            augmentation = augmentation.model_copy(update={"mirror_left_right": False})
        augment = Augmenter(data.patch, augmentation, self.config.seed, self.config.preprocessing.padding)
        sampler = StepSampler(
            self.step, o.steps, o.batch, self.accelerator.process_index, self.accelerator.num_processes
        )
        # On a GPU the trainer augments there; on a CPU the loading processes do, beside the network.
        on_cpu = self.accelerator.device.type == "cpu"
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=o.workers,
            collate_fn=partial(_collate, augment) if on_cpu else None,
            worker_init_fn=_single_thread,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        model, optimizer = self.accelerator.prepare(_LossStep(self.method), self.optimizer)
        if self.ema:
            self.ema.to(self.accelerator.device)
        model.train()
        started, before = time.monotonic(), self.elapsed
        first_step = self.step
        sums: dict[str, Tensor] = {}
        counted = 0
        for raw in loader:
            self.elapsed = before + time.monotonic() - started
            rate = _learning_rate(o, self.step, self.elapsed)
            for group in optimizer.param_groups:
                group["lr"] = rate
            set_seed(self.config.seed * 1_000_003 + self.step)  # dropout and the like: the same after a resume
            batch = raw if on_cpu else augment(raw, self.accelerator.device)
            batch.progress = _progress(o, self.step, self.elapsed)
            losses = model(batch)
            self.accelerator.backward(losses["total"])
            norm = self.accelerator.clip_grad_norm_(model.parameters(), o.clip)
            if not torch.isfinite(losses["total"]):
                self._save_bad_batch(batch)
                raise TrainingError(
                    f"The loss is not a number at step {self.step}.",
                    f"The batch is in {self.run.state / 'bad_batch.safetensors'}; try a lower learning rate.",
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.ema:
                self.ema.update(self.method, self.step)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach()  # type: ignore[operator]
            counted += 1
            done = self.step >= o.steps or (o.hours is not None and self.elapsed >= 3600 * o.hours)
            stop = self._stop_agreed()
            if counted >= o.report_every or done or stop:
                speed = (self.step - first_step) / max(time.monotonic() - started, 1e-6)
                means = {n: round(float(v) / counted, 5) for n, v in sums.items()}
                self._event(
                    "step", step=self.step, losses=means, learning_rate=rate, gradient=round(float(norm), 4),
                    steps_per_second=round(speed, 3), elapsed=round(self.elapsed, 1),
                )  # fmt: skip
                sums, counted = {}, 0
            self._beat("running", step=self.step, steps=o.steps, elapsed=self.elapsed)
            if self.step % o.validate_every == 0 or done:
                self._validate(validation)
            if self.step % o.save_every == 0 or done or stop:
                self._save()
            if done or stop:
                break
        finished = "stopped" if self.step < o.steps and self.run.stop_requested else "finished"
        self._event(finished, step=self.step, elapsed=round(self.elapsed, 1))
        self._beat(finished, force=True, step=self.step, steps=o.steps, elapsed=self.elapsed)
        self.accelerator.wait_for_everyone()

    def _cases(self) -> tuple[list[CachedCase], list[ValidationCase]]:
        cache = self.request.cache or self.run.folder / "cache"
        scheme, pre = self.method.scheme, self.config.preprocessing
        training = self.manifest.cases("training")
        cases: list[CachedCase] = []
        total = len(training) + self.config.data.phantoms
        with self.accelerator.main_process_first():
            for number in range(total):
                if number < len(training):
                    cases.append(cache_case(training[number], pre, scheme, cache))
                else:
                    cases.append(cache_phantom(number - len(training), self.config.seed, pre, scheme, cache))
                self._beat("preparing", done=number + 1, total=total)
        validation = load_validation(self.manifest.splits.get("validation", ()), pre)
        return cases, validation

    def _validate(self, cases: Sequence[ValidationCase]) -> None:
        if not cases:
            return
        mine = cases[self.accelerator.process_index :: self.accelerator.num_processes]
        weights = self.ema.swap_in(self.method) if self.ema else None
        self.method.eval()
        try:
            patch = self.config.data.patch
            scores = [validate(self.method, case, self.accelerator.device, patch) for case in mine]
        finally:
            self.method.train()
            if weights is not None:
                self.method.load_state_dict(weights)
        scores = gather_object(scores)
        means = {k: float(np.mean([s[k] for s in scores if k in s])) for k in sorted({k for s in scores for k in s})}
        self._event(
            "validation",
            step=self.step,
            scores={k: round(v, 4) for k, v in means.items()},
            elapsed=round(self.elapsed, 1),
        )
        score = means.get("level_dice", -math.inf)  # nothing annotated that the scheme has
        if score > self.best:
            self.best = score
            self._write_checkpoint(self.run.best, means)

    # --- what is kept ----------------------------------------------------------------------------------------------

    def _averaged(self) -> dict[str, Tensor]:
        return self.ema.state(self.method) if self.ema else self.method.state_dict()

    def _write_checkpoint(self, path: Path, scores: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        save_checkpoint(path, self.method.export_state(self._averaged()), self.metadata(scores))

    def metadata(self, scores: dict[str, float]) -> dict[str, Any]:
        """The JSON document of a checkpoint of this run."""
        annotated = {i for case in self.manifest.cases("training") for i in case.annotated}
        scheme = self.method.scheme
        seen = {scheme.channel_for(i) for i in annotated}
        start = self.run.state / _START
        learnt = set(json.loads(start.read_text(encoding="utf-8"))["validated"]) if start.exists() else set()
        seen |= {scheme.channel_of[s.id] for s in scheme.structures if s.name in learnt}
        unvalidated = [s.name for c, s in enumerate(scheme.structures, start=1) if c not in seen]
        return {
            "title": self.config.name or self.run.folder.name,
            "method": self.method.config.model_dump(mode="json"),
            "preprocessing": self.config.preprocessing.model_dump(mode="json"),
            "patch": list(self.config.data.patch),
            "unvalidated": unvalidated,
            "training": {
                "dataset": self.manifest.name,
                "cases": [c.name for c in self.manifest.cases("training")],
                "phantoms": self.config.data.phantoms,
                "seed": self.config.seed,
                "steps": self.step,
                "hours": round(self.elapsed / 3600, 3),
                "date": time.strftime("%Y-%m-%d"),
                "versions": versions(),
                "configuration": self.config.model_dump(mode="json", exclude={"dataset", "start_from", "resources"}),
            },
            "validation": scores,
        }

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = {f"model.{k}": v for k, v in self.method.state_dict().items()}
            if self.ema:
                tensors |= {f"ema.{k}": v for k, v in self.ema.values.items()}
            state = self.optimizer.state_dict()["state"]
            for index, entry in state.items():
                for name, value in entry.items():
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
            scaler = self.accelerator.scaler
            document = {
                "step": str(self.step),
                "elapsed": str(self.elapsed),
                "best": str(self.best),
                "scale": str(scaler.get_scale()) if scaler else "",
            }
            with staged(self.run.state / "state.safetensors") as (part,):
                save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, document)
            self._write_checkpoint(self.run.last, {})
        self.accelerator.wait_for_everyone()

    def _load_state(self) -> None:
        from safetensors import safe_open

        path = self.run.state / "state.safetensors"
        if not path.exists():
            self._event("resume", step=0, message="nothing was saved yet: starting from the beginning")
            return
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            document = file.metadata()
        self.step = int(document["step"])
        self.elapsed = float(document["elapsed"])
        self.best = float(document["best"])
        self.method.load_state_dict(_below(tensors, "model."))
        if self.ema:
            self.ema.values = _below(tensors, "ema.")
        state = self.optimizer.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, "optimizer.").items():
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})
        scaler = self.accelerator.scaler
        if scaler and document.get("scale"):
            scaler.load_state_dict({**scaler.state_dict(), "scale": float(document["scale"])})
        if self.accelerator.is_main_process:
            self.run.truncate_events(self.step)
        self._event("resume", step=self.step)

    def _save_bad_batch(self, batch: Batch) -> None:
        tensors = {k: v.contiguous() for k, v in vars(batch).items() if isinstance(v, Tensor)}
        with staged(self.run.state / "bad_batch.safetensors") as (part,):
            save_file(tensors, part)

    # --- reports ---------------------------------------------------------------------------------------------------

    def _stop_agreed(self) -> bool:
        """The same answer in every process, or some would wait for the others for ever."""
        stop = self.run.stop_requested
        if self.accelerator.num_processes == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _event(self, kind: str, **values: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        self.run.event(kind, **values)
        if self.request.report:
            self.request.report({"event": kind, **values})

    def _beat(self, state: str, *, force: bool = False, **values: Any) -> None:
        if self.accelerator.is_main_process:
            self.run.beat(state, force=force, **values)


class _Average:
    """Exponential moving average of the weights; the decay grows to its value, so early averages forget the start."""

    def __init__(self, method: Method, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in method.state_dict().items() if v.is_floating_point()}

    def to(self, device: torch.device) -> None:
        self.values = {k: v.to(device) for k, v in self.values.items()}

    @torch.no_grad()
    def update(self, method: Method, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        current = method.state_dict()
        for name, value in self.values.items():
            value.lerp_(current[name].detach(), 1 - decay)

    def state(self, method: Method) -> dict[str, Tensor]:
        return {**method.state_dict(), **self.values}

    def swap_in(self, method: Method) -> dict[str, Tensor]:
        """Put the averages into the method; returns what was there."""
        kept = {k: v.detach().clone() for k, v in method.state_dict().items()}
        method.load_state_dict(self.state(method))
        return kept


def load_matching(method: Method, checkpoint: str) -> int:
    """Take over the weights of a checkpoint wherever name and shape agree.

    Returns:
        how many tensors were taken.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: nothing fits.
    """
    theirs = load_tensors(find_checkpoint(checkpoint))
    mine = method.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in mine and mine[k].shape == v.shape}
    if not fitting:
        raise ConfigError(f"Nothing in {checkpoint} fits this method.", "Start from a checkpoint of the same method.")
    method.load_state_dict({**mine, **fitting})
    return len(fitting)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _precision(o: OptimizationConfig, cpu: bool) -> str:
    if o.mixed_precision != "auto":
        return o.mixed_precision
    if cpu:
        # bfloat16 pays only where the processor multiplies it in hardware.
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "bf16" if supported() else "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _progress(o: OptimizationConfig, step: int, elapsed: float) -> float:
    """Share of the training that is done: of the steps, or of the hours if those end sooner."""
    progress = step / o.steps
    if o.hours is not None:
        progress = max(progress, elapsed / (3600 * o.hours))
    return min(progress, 1.0)


def _learning_rate(o: OptimizationConfig, step: int, elapsed: float) -> float:
    """Warm-up, then decay over the steps, or over the hours if those end sooner."""
    progress = _progress(o, step, elapsed)
    if o.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    elif o.schedule == "poly":
        shape = (1 - progress) ** 0.9
    else:
        shape = 0.2 ** int(3 * progress)
    rate = o.final_learning_rate + (o.learning_rate - o.final_learning_rate) * shape
    return rate * min(1.0, (step + 1) / max(o.warmup, 1))


def _check_extent(manifest: Manifest, wanted: Extent | None) -> None:
    for case in manifest.splits.get("training", ()):
        extent = case.extent or manifest.extent
        if wanted is not None and extent is not None and extent is not wanted:
            raise ConfigError(
                f"{case.name} has masks of vertebral extent “{extent.value}”, the scheme wants “{wanted.value}”.",
                "Train with a scheme of the same extent; the two are never mixed.",
            )


def _check_patch(patch: Sequence[int], method: Method) -> None:
    if len(patch) != method.config.dims:
        raise ConfigError(
            f"The patch {tuple(patch)} is not {method.config.dims}D like the method.", "Correct data.patch."
        )
    if method.window and tuple(patch) != method.window:
        raise ConfigError(f"This method takes inputs of {method.window}, not {tuple(patch)}.", "Correct data.patch.")
    if any(n % d for n, d in zip(patch, method.divisors, strict=True)):
        raise ConfigError(
            f"The sides of the patch {tuple(patch)} must be multiples of {method.divisor}.", "Correct data.patch."
        )


def _collate(augment: Augmenter, items: list[dict[str, Any]]) -> Batch:
    return augment(default_collate(items), torch.device("cpu"))


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
