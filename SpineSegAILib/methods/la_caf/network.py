"""LA-CAF (Guo et al., language-guided self-adaptive cross-attention fusion, MICCAI 2025).

Text vectors of the classes' names pass per-class adapters, attend to the image, and generate the weights of each
class's own small head on the backbone's features. What the abstract leaves open follows the authors' released code or
is our choice; each place says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError
from ..base import Batch, Context, Method, Readout, Tiling
from ..blocks import group_norm, position_encoding, rank_map
from ..losses import rank_loss
from ..options import choice_option
from ..resenc_unet.network import FIRST_LAYERS
from .backbones import SlicewiseResEnc, SwinUNETR3D, UNet3D
from .config import UNIVERSAL_MODEL, LaCafConfig, published_encoder
from .embeddings import encode_prompts, encoder, unit_rms
from .losses import masked_sigmoid_loss
from .universal_model import read_weights, renamed
from .visual import slice_encoder

_POOLED = 12
"""Side of the bottleneck for 96³ inputs; other sizes are pooled to it before the image adapter."""
_CLASSES_AT_ONCE = 4
"""Heads computed together at inference: bounds the memory for their hidden channels."""


def _group_norm(width: int) -> nn.GroupNorm:
    """16 groups as in the release, or the most that divide a narrower width."""
    return group_norm(width, 16, least=1)


class ClassText(nn.Module):
    """One class's text vector and its adapter, ``T = ReLU(W2 · GELU(W1 · E))`` without a skip.

    The release's adapters have biases, with which one could say all about its class without any text.
    The vector is a buffer: it is in the checkpoint and never learns. It is zero until it has been filled.
    """

    embedding: Tensor

    def __init__(self, config: LaCafConfig) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.zeros(config.text_width))
        self.adapter: nn.Module | None = None
        if config.text_map == "adapter":
            self.adapter = nn.Sequential(
                nn.Linear(config.text_width, config.adapter_width, bias=config.adapter_biases),
                nn.GELU(),
                nn.Linear(config.adapter_width, config.fusion_width, bias=config.adapter_biases),
                nn.ReLU(),
            )


class ImageAdapter(nn.Module):
    """(B, C, d, h, w) → (B, fusion width): one MLP 12→3→1 collapses the three axes in turn.

    Source: released code; `image_map="pool"` is the Universal Model's global average.
    """

    def __init__(self, inputs: int, outputs: int, kind: str) -> None:
        super().__init__()
        self.norm = _group_norm(inputs)
        self.axis = nn.Sequential(nn.Linear(_POOLED, 3), nn.GELU(), nn.Linear(3, 1)) if kind == "adapter" else None
        self.project = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(x))
        if self.axis is None:
            return self.project(x.mean((2, 3, 4)))
        x = F.adaptive_avg_pool3d(x, _POOLED)
        for _ in range(3):
            x = self.axis(x)[..., 0]
        return self.project(F.relu(x))


def scalar_gain(text: Tensor) -> Tensor:
    """(K,) the release's fusion: row sums of ``A = minmax(T Tᵀ)``, by which the image vector is multiplied.

    All rows that A mixes are the same image vector, so this is all it does (`fusion="released"`). One class alone, or
    classes that all look the same, have nothing to scale: 1.
    """
    similarity = text @ text.T
    low, high = similarity.min(), similarity.max()
    if not high > low:
        return torch.ones(len(text), dtype=text.dtype, device=text.device)
    return ((similarity - low) / (high - low)).sum(1)


class CrossAttention(nn.Module):
    """Text vectors look at the image: ``Z = LN(MHA(q=T, k=v=tokens) + T)`` (our default, after title and abstract).

    T is as large as what it finds, and the same for every image, so Z tells classes apart rather than images, and so do
    the heads made of it. With `attention_norm` (ours) ``Z = LN(MHA(q=LN(T), k=v=LN(tokens)))``: what was found, alone.
    """

    def __init__(self, config: LaCafConfig, inputs: int) -> None:
        super().__init__()
        width = config.fusion_width
        self.project = nn.Conv3d(inputs, width, 1)
        self.attention = nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.visual = nn.Linear(config.text_width, width) if config.use_clip_visual else None
        self.before = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)) if config.attention_norm else None

    def forward(self, text: Tensor, bottleneck: Tensor, whole: Tensor, visual: Tensor | None) -> Tensor:
        """(B, k, width) from text (k, width), bottleneck (B, C, d, h, w), image vector (B, width), CLIP (B, n, t)."""
        tokens = self.project(bottleneck)
        place = position_encoding(tokens.shape[2:], tokens.shape[1], tokens.device, longest=1000.0).to(tokens.dtype)
        image, place = tokens.flatten(2).mT, place.flatten(1).T
        extra = [whole[:, None]]
        if self.visual is not None and visual is not None:
            extra.append(self.visual(visual))
        queries = text.expand(len(bottleneck), -1, -1).to(tokens.dtype)
        if self.before is None:
            found = torch.cat([image + place, *extra], 1)
            return self.norm(self.attention(queries, found, found, need_weights=False)[0] + queries)
        image, *extra = (self.before[0](x) for x in (image, *extra))
        found = torch.cat([image + place, *extra], 1)
        return self.norm(self.attention(self.before[1](queries), found, found, need_weights=False)[0])


def head_sizes(width: int) -> tuple[int, int, int, int, int, int]:
    """Numbers of weights and biases of the three layers of a head: 153 in all for a width of 8."""
    return width * width, width, width * width, width, width, 1


def dynamic_heads(features: Tensor, parameters: Tensor) -> Tensor:
    """Apply each class's own three 1×1×1 convolutions (ReLU between) to the same features.

    Args:
        features: (B, w, *spatial).
        parameters: (B, k, 2w² + 3w + 1): weights and biases of the layers, as `head_sizes` splits them.

    Returns:
        (B, k, *spatial) logits. Equals k separate heads, or a convolution in k groups; here one product per layer.
    """
    b, w = features.shape[:2]
    k = parameters.shape[1]
    w1, b1, w2, b2, w3, b3 = parameters.split(head_sizes(w), -1)
    x = features.flatten(2)
    x = torch.baddbmm(b1.reshape(b, k * w, 1), w1.reshape(b, k * w, w), x).relu_()
    x = torch.baddbmm(b2.reshape(b * k, w, 1), w2.reshape(b * k, w, w), x.reshape(b * k, w, -1)).relu_()
    x = torch.baddbmm(b3.reshape(b * k, 1, 1), w3.reshape(b * k, 1, w), x)
    return x.reshape(b, k, *features.shape[2:])


class LaCafMethod(Method):
    """The method; see `LaCafConfig`.

    Its evidence is ``classes`` = softmax of (0, logits): what independent sigmoids say once it is agreed that a voxel
    is at most one of the structures, ``P(c) ∝ p_c / (1 - p_c)`` and ``P(background) ∝ 1``. The arg-max of it is the
    paper's rule: the largest sigmoid where any exceeds 0.5, else background.
    """

    text_center: Tensor
    readout = Readout(("to_head",))
    options: Mapping[str, str] = {
        "text": "shuffled: each class gets the text of another, half the scheme away; neighbour: of the next one (for "
        "research: both must harm, the first ruin the result)",
    }

    def __init__(self, config: LaCafConfig) -> None:
        super().__init__(config)
        self.config: LaCafConfig = config
        if not self.scheme.ids:
            raise ConfigError(f"The scheme {self.scheme.name} has no structures.", "LA-CAF needs at least one.")
        self.tiling = Tiling(config.divisor, around_column=config.around_column)
        self.backbone: UNet3D | SlicewiseResEnc | SwinUNETR3D
        if config.backbone == "unet":
            self.backbone = UNet3D(config.input_channels, config.widths, config.strides)
        elif config.backbone == "resenc":
            # It sees slices one by one; windows that overlap by less are half the work.
            self.tiling = replace(self.tiling, whole_slices=True, overlap=0.25)
            blocks = config.blocks or (2,) * len(config.widths)
            self.backbone = SlicewiseResEnc(config.input_channels, config.widths, blocks)
        else:
            self.backbone = SwinUNETR3D(config.input_channels, config.widths[0])
        full, deep = self.backbone.full_width, self.backbone.bottleneck_width
        self.classes = nn.ModuleDict({str(i): ClassText(config) for i in self.scheme.ids})
        if config.text_map == "linear":
            self.text_projection = nn.Linear(config.text_width, config.fusion_width)
        self.image_adapter = ImageAdapter(deep, config.fusion_width, config.image_map)
        if config.fusion == "xattn":
            self.cross_attention = CrossAttention(config, deep)
        w = config.head_width
        self.to_head = nn.Sequential(_group_norm(full), nn.ReLU(), nn.Conv3d(full, w, 1))
        self.controller = nn.Linear((2 if config.concat else 1) * config.fusion_width, sum(head_sizes(w)))
        with torch.no_grad():  # logits start near the prior, or a few voxels would fight all the background's gradient
            self.controller.bias[-1] = math.log(config.foreground_prior / (1 - config.foreground_prior))
        if config.rank_weight:
            self.rank_head = nn.Conv3d(full, 1, 1)
        self.register_buffer("text_center", torch.zeros(config.text_width))
        self._clip_visual: Callable[[Tensor], Tensor] | None = None
        if config.text_encoder == "hashed":
            self._embed()
        if config.only:
            self.requires_grad_(False)
            for name in config.only:
                self._class(self.scheme.require(name).id).requires_grad_(True)

    # --- text ------------------------------------------------------------------------------------------------------

    def _class(self, structure_id: int) -> ClassText:
        found = self.classes[str(structure_id)]
        assert isinstance(found, ClassText)
        return found

    @property
    def embeddings(self) -> Tensor:
        """(K, text width) the text vectors, in the scheme's order."""
        return torch.stack([self._class(i).embedding for i in self.scheme.ids])

    def open_resources(self, resources: Mapping[str, str]) -> None:
        """Weights of the Universal Model, where the run was given them; those of a starting checkpoint replace them.

        Raises:
            ConfigError: the file cannot be read, or nothing in it fits.
        """
        if UNIVERSAL_MODEL not in resources:
            return
        mine = self.state_dict()
        theirs = renamed(read_weights(resources[UNIVERSAL_MODEL]), self.config)
        fitting = {k: v for k, v in theirs.items() if k in mine and mine[k].shape == v.shape}
        if not any(name.startswith("backbone.") for name in fitting):
            raise ConfigError(
                f"Nothing in {resources[UNIVERSAL_MODEL]} fits this network.",
                "The published U-Net fits the preset “paper” or “released”: backbone=unet, widths 64 to 512.",
            )
        self.load_state_dict({**mine, **fitting})

    def remap_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also the network of the default method, where the backbone is made like it. What that one read from a
        slice's neighbors it reads from the slice, as it does in stacks of one."""
        state = {
            k.replace("network.", "backbone.slices.", 1) if k.startswith("network.") else k: v for k, v in state.items()
        }
        mine = self.state_dict()
        for name in (f"backbone.slices.{layer}" for layer in FIRST_LAYERS):
            if name not in state or name not in mine:
                continue
            extra = state[name].shape[1] - mine[name].shape[1]
            if extra > 0 and extra % 2 == 0:
                images, rest = state[name][:, : 1 + extra], state[name][:, 1 + extra :]
                state[name] = torch.cat([images.sum(1, keepdim=True), rest], 1)
        return state

    def prepare_training(self, start: Mapping[str, Any] | None) -> None:
        """Fill the text vectors. Those of the starting checkpoint stay where they are of the same encoder and text.

        Raises:
            ConfigError, MissingPackageError: the text encoder cannot be had.
        """
        same = (
            start is not None
            and published_encoder(str(start.get("text_encoder"))) == published_encoder(self.config.text_encoder)
            and all(start.get(k) == getattr(self.config, k) for k in ("text_width", "template", "center_text"))
        )
        self._embed(keep=same)

    @torch.no_grad()
    def _embed(self, *, keep: bool = False) -> None:
        missing = [i for i in self.scheme.ids if not (keep and self._class(i).embedding.any())]
        if missing:
            prompts = [self.config.prompts[i] for i in missing]
            width = self.config.text_width
            vectors = encode_prompts(prompts, encoder(self.config.text_encoder, width), width)
            if not keep:
                shared = vectors.mean(0) if self.config.center_text and len(vectors) > 1 else 0 * vectors[0]
                self.text_center.copy_(torch.from_numpy(shared))
            vectors = unit_rms(vectors - self.text_center.cpu().numpy())
            self.set_embeddings(dict(zip(missing, vectors, strict=True)))

    @torch.no_grad()
    def set_embeddings(self, vectors: Mapping[int, np.ndarray | Tensor]) -> None:
        """Replace the text vectors of these structures."""
        for sid, vector in vectors.items():
            buffer = self._class(sid).embedding
            buffer.copy_(torch.as_tensor(vector, dtype=buffer.dtype))

    def text(self, ids: Sequence[int], source: Mapping[int, int] | None = None) -> Tensor:
        """(k, fusion width) adapted text vectors T.

        Args:
            ids: structures.
            source: structure → whose text vector it is given; its own where not said.

        Raises:
            ConfigError: a structure has no text vector yet.
        """
        rows = []
        for sid in ids:
            embedding = self._class((source or {}).get(sid, sid)).embedding
            if not embedding.any():
                raise ConfigError(
                    f"“{self.config.prompts[sid]}” has no entry in the prompt bank.",
                    f"Train with a text encoder that is there (text_encoder is {self.config.text_encoder}).",
                )
            adapter = self._class(sid).adapter
            rows.append(F.relu(self.text_projection(embedding)) if adapter is None else adapter(embedding))
        return torch.stack(rows)

    # --- the network -----------------------------------------------------------------------------------------------

    def fuse(self, ids: Sequence[int], bottleneck: Tensor, visual: Tensor | None = None, **text: Any) -> Tensor:
        """(B, k, 1 or 2 fusion widths) what the controller turns into heads: ``[Z ; T]``, or Z alone."""
        whole = self.image_adapter(bottleneck)
        if self.config.fusion == "released":  # the gain of a class depends on all the classes there are
            everyone = self.text(self.scheme.ids, **text)
            rows = [self.scheme.ids.index(i) for i in ids]
            words, gain = everyone[rows], scalar_gain(everyone)[rows]
            fused = gain[None, :, None] * whole[:, None]
        else:
            words = self.text(ids, **text)
            if self.config.fusion == "xattn":
                fused = self.cross_attention(words, bottleneck, whole, visual)
            else:
                fused = whole[:, None].expand(-1, len(ids), -1)
        if not self.config.concat:
            return fused
        return torch.cat([fused, words.expand(len(fused), -1, -1).to(fused.dtype)], -1)

    def forward(
        self, images: Tensor, coordinates: Tensor, ids: Sequence[int] = (), **text: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, k, *spatial) of the structures `ids` (all where empty); rank (B, *spatial) in training."""
        ids = tuple(ids) or self.scheme.ids
        features, bottleneck = self.backbone(self.network_input(images, coordinates))
        fused = self.fuse(ids, bottleneck, self._look(images), **text)
        parameters = self.controller(fused)
        reduced = self.to_head(features)
        if torch.is_grad_enabled():
            logits = dynamic_heads(reduced, parameters.to(reduced.dtype))
        else:
            logits = reduced.new_empty(len(images), len(ids), *images.shape[2:])
            for start in range(0, len(ids), _CLASSES_AT_ONCE):
                part = slice(start, start + _CLASSES_AT_ONCE)
                logits[:, part] = dynamic_heads(reduced, parameters[:, part].to(reduced.dtype))
        rank = None
        if self.config.rank_weight and torch.is_grad_enabled():
            rank = rank_map(self.rank_head(features), features.shape[2:])
        return logits, rank

    def _look(self, images: Tensor) -> Tensor | None:
        """(B, n, text width) CLIP's vectors of evenly spaced slices; CLIP is not part of this module."""
        if not self.config.use_clip_visual:
            return None
        if self._clip_visual is None:
            self._clip_visual = slice_encoder(self.config.text_encoder, self.config.text_width)
        depth = images.shape[2]
        at = torch.linspace(0, depth - 1, min(self.config.clip_slices, depth)).round().long()
        with torch.no_grad():
            vectors = self._clip_visual(images[:, 0, at].flatten(0, 1)[:, None])
        return vectors.view(len(images), len(at), -1).to(images.dtype)

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        logits, rank = self(batch.image, batch.coordinates)
        losses = masked_sigmoid_loss(
            logits,
            batch.allowed,
            mask_unlabelled=self.config.mask_unlabelled,
            positive_weight=self.config.positive_weight,
            smooth_overlap=self.config.dice_smooth == "both",
        )
        if rank is not None:
            losses["rank"] = rank_loss(rank, batch.rank)
            losses["total"] = losses["total"] + self.config.rank_weight * losses["rank"]
        return losses

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        source = None
        everyone = self.scheme.ids
        places = {"shuffled": (len(everyone) + 1) // 2, "neighbour": 1}
        if away := places.get(choice_option(context.options, "text", tuple(places), "")):
            source = dict(zip(everyone, (*everyone[away:], *everyone[:away]), strict=True))
        logits, _ = self(images, context.coordinates, source=source)
        logits = logits.float()
        return {"classes": torch.cat([torch.zeros_like(logits[:, :1]), logits], 1).softmax(1)}


def build(config: LaCafConfig) -> LaCafMethod:
    """The method of a configuration."""
    return LaCafMethod(config)
