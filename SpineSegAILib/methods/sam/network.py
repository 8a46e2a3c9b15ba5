"""SAM (Kirillov et al., ICCV 2023) and MedSAM (Ma et al., Nature Communications 2024) on our boxes and keypoints.

A structure is asked for by the box around it in the segmentation that the reader gives (`Hints.prior`), or by its key
point; each answer is a mask of its own. Without boxes or points there is nothing to ask for: SAM names nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, HintError
from ..base import Batch, Context, Method, Tiling
from ..clicking import ClickScene, SceneGrid, gate
from ..options import choice_option
from ..text.encoders import broken_package
from .config import SamConfig

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of photographs' red, green and blue."""


@dataclass
class _Prompts:
    """What is asked for in one image.

    Attributes:
        channels: of the scheme, one for each mask.
        boxes: (n, 4) left, top, right, bottom in pixels, or None.
        points: (n, 2) column and row, or (n, k, 2) of several; or None; where both are None n is 0.
        signs: (n, k) 1 for points in the structure, 0 for points beside it; None where all are in it.
    """

    channels: list[int]
    boxes: Tensor | None = None
    points: Tensor | None = None
    signs: Tensor | None = None


class SamMethod(Method):
    """The method."""

    options: Mapping[str, str] = {"prompts": "given (default): what the reader shows is asked for; none: nothing is"}
    validation_options: Mapping[str, Any] = {"prompts": "none"}

    def __init__(self, config: SamConfig) -> None:
        super().__init__(config)
        self.config: SamConfig = config
        self.tiling = Tiling(1)
        self.scenes = SceneGrid((5, 128, 128), (4.0, 1.0, 1.0))
        self.sam: Any = _new_model(config)
        self.side: int = self.sam.config.vision_config.image_size
        self.requires_grad_(False)
        if config.trained == "all":
            self.sam.vision_encoder.requires_grad_(True)
        decoder = self.sam.mask_decoder.requires_grad_(True)
        # A prompt gets one mask: what tells several of them apart has nothing to learn from.
        decoder.iou_prediction_head.requires_grad_(False)
        decoder.output_hypernetworks_mlps[1:].requires_grad_(False)

    # --- weights -----------------------------------------------------------------------------------------------------

    def prepare_training(self, start: Mapping[str, Any] | None) -> None:
        """Loads the user's weights, unless the run starts from a checkpoint.

        Raises:
            ConfigError: there are none, or they do not fit.
        """
        if start is not None:
            return
        if not self.config.weights:
            raise ConfigError(
                "SAM starts from weights that are there, and none are given.",
                "Use --set method.weights=FOLDER, of a download such as: hf download facebook/sam-vit-base "
                "--local-dir FOLDER (MedSAM: wanglab/medsam-vit-base).",
            )
        self.sam.load_state_dict(_published(self.config.weights))

    # --- one image ---------------------------------------------------------------------------------------------------

    def embedded(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) → (B, C, h, w) features of the image encoder."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trained == "all"):
            return self.sam.get_image_embeddings(self.pictures(images))

    def pictures(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) gray values of any range → (B, 3, S, S): the longest side fills it, the rest is zero."""
        flat = images.float().flatten(1)
        low, high = (
            torch.quantile(flat[:, :: max(1, flat.shape[1] // 65536)], q, 1)[:, None, None, None]
            for q in (0.005, 0.995)
        )
        gray = ((images.float() - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        height, width = self._shown(images.shape[2:])
        gray = F.interpolate(gray, (height, width), mode="bilinear", align_corners=False, antialias=True)
        color = gray.expand(-1, 3, -1, -1)
        if self.config.pixels == "imagenet":
            mean, std = (color.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
            color = (color - mean) / std
        return F.pad(color, (0, self.side - width, 0, self.side - height))

    def _shown(self, shape: Any) -> tuple[int, int]:
        """Rows and columns of the picture that an image of this shape fills."""
        scale = self.side / max(shape)
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))

    def masks(self, embedding: Tensor, prompts: _Prompts, shape: Any) -> Tensor:
        """(n, H, W) logits of what is asked for.

        Args:
            embedding: (1, C, h, w) of one image.
            prompts: at least one.
            shape: H, W.
        """
        scale = self.side / max(shape)
        told: dict[str, Tensor] = {}
        if prompts.boxes is not None:
            told["input_boxes"] = prompts.boxes[None].float() * scale
        if prompts.points is not None:
            points = prompts.points if prompts.points.ndim == 3 else prompts.points[:, None]
            signs = torch.ones(points.shape[:2]) if prompts.signs is None else prompts.signs
            told["input_points"] = points[None].float() * scale
            told["input_labels"] = signs[None].to(embedding.device, torch.long)
        low = self.sam(image_embeddings=embedding, multimask_output=False, **told).pred_masks[0, :, :1].float()
        height, width = self._shown(shape)
        whole = F.interpolate(low, (self.side, self.side), mode="bilinear", align_corners=False)
        return F.interpolate(whole[..., :height, :width], tuple(shape), mode="bilinear", align_corners=False)[:, 0]

    # --- training ----------------------------------------------------------------------------------------------------

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy and Dice of each mask that is asked for, where it is known."""
        embeddings = self.embedded(batch.image)
        entropies, dices = [], []
        for index, embedding in enumerate(embeddings):
            prompts = self._training_prompts(batch.label[index])
            if not prompts.channels:
                continue
            logits = self.masks(embedding[None], prompts, batch.image.shape[2:])
            known = batch.known[index, prompts.channels].float()
            target = (
                batch.label[index][None] == torch.tensor(prompts.channels, device=known.device)[:, None, None]
            ).float()
            entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            entropies.append((entropy * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1))
            said = logits.sigmoid() * known
            overlap = (said * target).sum((1, 2))
            dices.append(1 - (2 * overlap + 1) / (said.sum((1, 2)) + target.sum((1, 2)) + 1))
        if not entropies:
            nothing = (
                sum((p.sum() for p in self.parameters() if p.requires_grad), torch.zeros((), device=embeddings.device))
                * 0
            )
            return {"total": nothing, "cross_entropy": nothing, "dice": nothing}
        ce, dice = torch.cat(entropies).mean(), torch.cat(dices).mean()
        return {"total": ce + dice, "cross_entropy": ce, "dice": dice}

    def _training_prompts(self, label: Tensor) -> _Prompts:
        """Some of the structures of a slice (H, W), by boxes that are a little off or by points inside of them."""
        present = [c for c in label.unique().tolist() if c > 0]
        chosen = [present[i] for i in torch.randperm(len(present)).tolist()[: self.config.masks]]
        if not chosen:
            return _Prompts([])
        boxes = self.config.prompts == "boxes" or (self.config.prompts == "either" and float(torch.rand(())) < 0.5)
        if not boxes:
            inside = [(label == c).nonzero() for c in chosen]
            points = torch.stack([where[int(torch.randint(len(where), ()))].flip(0) for where in inside])
            return _Prompts(chosen, points=points)
        exact = torch.stack([_box(label == c) for c in chosen])
        sides = (exact[:, 2:] - exact[:, :2]).repeat(1, 2)
        off = (2 * torch.rand(exact.shape, device=exact.device) - 1) * self.config.jitter * sides
        return _Prompts(chosen, boxes=exact + off)

    # --- inference ---------------------------------------------------------------------------------------------------

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        """Probabilities of the structures that are asked for; each mask is sure of its own against background.

        Raises:
            HintError: the reader shows nothing.
        """
        asked = choice_option(context.options, "prompts", ("given", "none"), "given") == "given"
        boxes_alone = self.config.prompts == "boxes"
        if asked and context.prior is None and (context.keypoints is None or boxes_alone):
            raise HintError(
                "SAM segments what it is shown, and nothing is shown to it.",
                "Give a segmentation, of which it takes boxes (--prior FILE)"
                + (": this checkpoint was not trained with points." if boxes_alone else ", or keypoints."),
            )
        logits = torch.full((len(images), self.scheme.channels, *images.shape[2:]), -20.0, device=images.device)
        logits[:, 0] = 0
        embeddings: Tensor | None = None
        for index in range(len(images) if asked else 0):
            for prompts in self._given(context, index):
                embeddings = self.embedded(images) if embeddings is None else embeddings
                found = self.masks(embeddings[index][None], prompts, images.shape[2:])
                logits[index, prompts.channels] = found.to(logits.dtype)
            context.tick((index + 1) / len(images))
        return {"classes": logits.softmax(1)}

    def refined(self, scene: ClickScene) -> Tensor:
        """See `Method.refined`: the slices that are clicked in, each by its clicks and the box of what is drawn there.

        SAM sees single pictures; other slices stay as they are.
        """
        assert self.scenes is not None
        result, share = scene.mask.float().clone(), gate(scene, self.scenes.spacing)
        for index in range(len(result)):
            clicked = scene.signs[index] != 0
            planes = scene.points[index, :, 0].round().long()
            for plane in planes[clicked].unique().tolist():
                here = clicked & (planes == plane)
                mask = scene.mask[index, plane] > 0.5
                prompts = _Prompts(
                    [1],
                    boxes=_box(mask)[None] if mask.any() else None,
                    points=scene.points[index, here][:, 1:].flip(1)[None],
                    signs=(scene.signs[index, here] > 0).long()[None],
                )
                image = scene.image[index, plane][None, None]
                found = self.masks(self.embedded(image), prompts, mask.shape)[0].sigmoid()
                result[index, plane] += share[index, plane] * (found - result[index, plane])
        return result

    def _given(self, context: Context, index: int) -> list[_Prompts]:
        """Boxes of the prior's structures, and points where only these are given."""
        result, boxed = [], []
        if context.prior is not None:
            prior = context.prior[index]
            boxed = [c for c in prior.unique().tolist() if c > 0]
            if boxed:
                result.append(_Prompts(boxed, boxes=torch.stack([_box(prior == c) for c in boxed])))
        if context.keypoints is not None and self.config.prompts != "boxes":
            points = context.keypoints[index]
            pointed = [i + 1 for i in (~points.isnan().any(1)).nonzero()[:, 0].tolist() if i + 1 not in boxed]
            if pointed:
                result.append(_Prompts(pointed, points=points[[c - 1 for c in pointed]].flip(1)))
        return result


def _box(mask: Tensor) -> Tensor:
    """(4,) left, top, right, bottom of a (H, W) mask that is not empty; the right and lower edges are beyond it."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def _new_model(config: SamConfig) -> Any:
    return _of_transformers("SamModel")(_of_transformers("SamConfig")(**config.architecture))


def _of_transformers(name: str) -> Any:
    """A class of transformers, by name: its lazy classes have types that hold for other versions alone.

    Raises:
        MissingPackageError: transformers is there and cannot be used.
    """
    try:
        return getattr(import_module("transformers"), name)
    except (ImportError, RuntimeError) as error:  # not found is what its lazy classes say of any failure
        raise broken_package("transformers", error) from error


def _published(weights: str) -> dict[str, Tensor]:
    """The user's tensors by their names in `SamModel`.

    Raises:
        ConfigError: they cannot be had, are a pickle, or are of another shape than config.json says.
    """
    remedy = "Download the folder again; weights that are a pickle (.bin) are converted where they are trusted: " + (
        f"python -c \"import transformers as t; t.SamModel.from_pretrained('{weights}').save_pretrained('FOLDER')\""
    )
    try:
        model, told = _of_transformers("SamModel").from_pretrained(
            weights, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"The weights {weights} cannot be loaded: {str(error).splitlines()[0]}", remedy) from error
    missing = sorted(told["missing_keys"]) + [str(name) for name in told.get("mismatched_keys", ())]
    if missing:
        raise ConfigError(
            f"The weights {weights} do not fit a SAM of their config.json: {missing[0]} is not there.", remedy
        )
    return model.state_dict()


def build(config: SamConfig) -> SamMethod:
    """The method of a configuration."""
    return SamMethod(config)
