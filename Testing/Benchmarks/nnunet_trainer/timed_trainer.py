"""A trainer for nnU-Net v2 that ends by the clock, for `nnunet.py`, which names this folder in ``nnUNet_extTrainer``.

Nothing is changed but the length: the learning rate falls by nnU-Net's own polynomial over the time instead of over a
thousand epochs, epochs are shorter so that there are some, and every one is saved.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

POWER = 0.9  # nnU-Net's


class SpineSegAITimedTrainer(nnUNetTrainer):
    """Trains for ``SPINESEGAI_SECONDS``, counted over all calls."""

    # nnU-Net looks its own arguments up by the names that stand here.
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")) -> None:  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch = int(os.environ.get("SPINESEGAI_ITERATIONS", "50"))
        self.num_val_iterations_per_epoch = max(self.num_iterations_per_epoch // 5, 1)
        self.num_epochs = 10**6
        self.save_every = 1
        self.budget = float(os.environ["SPINESEGAI_SECONDS"])

    @property
    def _clock(self) -> Path:
        return Path(self.output_folder) / "seconds.txt"

    def run_training(self) -> None:
        self.on_train_start()
        parameters = sum(p.numel() for p in self.network.parameters())
        (Path(self.output_folder) / "parameters.txt").write_text(str(parameters))
        spent = float(self._clock.read_text(encoding="utf-8")) if self._clock.exists() else 0.0
        started = time.perf_counter()

        def elapsed() -> float:
            return spent + time.perf_counter() - started

        while elapsed() < self.budget:
            self.on_epoch_start()
            self.on_train_epoch_start()
            losses = []
            while len(losses) < self.num_iterations_per_epoch and (elapsed() < self.budget or not losses):
                rate = self.initial_lr * max(1 - elapsed() / self.budget, 0.0) ** POWER
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                losses.append(self.train_step(next(self.dataloader_train)))
            self.on_train_epoch_end(losses)
            with torch.no_grad():
                self.on_validation_epoch_start()
                checked = [
                    self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
                ]
                self.on_validation_epoch_end(checked)
            self.on_epoch_end()
            self._clock.write_text(f"{elapsed():.1f}")
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Not here: `nnunet.py` predicts and scores all cases in its own way."""
