"""A trainer for nnU-Net v2 that ends by the clock or after so many steps; `comparison.nnunet` names this folder to it.

Nothing is changed but the length: the learning rate falls by nnU-Net's own polynomial over the time or the steps
instead of over a thousand epochs, epochs are shorter so that there are some, and every one is saved.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

POWER = 0.9  # nnU-Net's


class SpineSegAITimedTrainer(nnUNetTrainer):
    """Trains for ``SPINESEGAI_SECONDS`` and ``SPINESEGAI_STEPS`` at most, counted over all calls."""

    # nnU-Net looks its own arguments up by the names that stand here.
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")) -> None:  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = int(os.environ.get("SPINESEGAI_ITERATIONS", "50"))
        self.num_val_iterations_per_epoch = max(self.num_iterations_per_epoch // 5, 1)
        self.num_epochs = 10**6
        self.save_every = 1
        self.most_seconds = float(os.environ.get("SPINESEGAI_SECONDS", "inf"))
        self.most_steps = float(os.environ.get("SPINESEGAI_STEPS", "inf"))

    @property
    def _clock(self) -> Path:
        return Path(self.output_folder) / "clock.json"

    def run_training(self) -> None:
        self.on_train_start()
        parameters = sum(p.numel() for p in self.network.parameters())
        (Path(self.output_folder) / "parameters.txt").write_text(str(parameters))
        before = json.loads(self._clock.read_text(encoding="utf-8")) if self._clock.exists() else {}
        spent, steps = float(before.get("seconds", 0.0)), int(before.get("steps", 0))
        started = time.perf_counter()

        def progress() -> float:
            return max((spent + time.perf_counter() - started) / self.most_seconds, steps / self.most_steps)

        while progress() < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            losses: list = []
            while len(losses) < self.num_iterations_per_epoch and (progress() < 1 or not losses):
                rate = self.initial_lr * max(1 - progress(), 0.0) ** POWER
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                losses.append(self.train_step(next(self.dataloader_train)))
                steps += 1
            self.on_train_epoch_end(losses)
            with torch.no_grad():
                self.on_validation_epoch_start()
                checked = [
                    self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
                ]
                self.on_validation_epoch_end(checked)
            self.on_epoch_end()
            took = spent + time.perf_counter() - started
            self._clock.write_text(json.dumps({"seconds": round(took, 1), "steps": steps}))
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Not here: the comparison predicts and scores all cases in its own way."""
