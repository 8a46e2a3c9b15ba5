"""What each method is, in words: feeds the command line, the panel and the README. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, MissingPackageError, problems

if TYPE_CHECKING:
    from .base import Method
    from .config import MethodConfig

SCARNET = (
    "Lei et al., SCAR-Net: spine segmentation in MRI based on cross attention and recognition-assisted label fusion"
)
DGMSNET = (
    "Pang et al., DGMSNet: spine segmentation for MR image by a detection-guided mixed-supervised segmentation "
    "network. MedIA 2022"
)
NNUNET = "Isensee et al., nnU-Net: a self-configuring method for biomedical image segmentation. Nature Methods 2021"


@dataclass(frozen=True)
class MethodInfo:
    """One method as users see it.

    Attributes:
        id: stable id, as on the command line and in checkpoints.
        title: what it is called in the panel.
        group: ``"system"`` for the four published spine systems, ``"baseline"`` for what they are compared with and
            what is worth choosing besides, ``"comparison"`` for what is there to be compared with alone,
            ``"correction"`` for what corrects segmentations and makes none.
        summary: the idea in a sentence.
        citation: where it comes from.
        dims: spatial dimensions it can be built for.
        modalities: ``("MR", "CT", …)``.
        hints: names of the `Hints` fields that it uses beyond those that `consistency` serves for every method.
        sampling: run-time options of how masks are drawn, for the panel to show; empty for methods that draw none.
        package: subpackage of `SpineSegAILib.methods` with `config.CONFIG` and `network.build`.
        clicks: whether its checkpoints follow clicks that correct a segmentation (`Method.scenes`).
        needs: optional packages that its network is made with: pairs of a module and what pip calls it.
    """

    id: str
    title: str
    group: str
    summary: str
    citation: str
    package: str
    dims: tuple[int, ...] = (2,)
    modalities: tuple[str, ...] = ("MR", "CT")
    hints: frozenset[str] = frozenset()
    sampling: tuple[str, ...] = ()
    clicks: bool = False
    needs: tuple[tuple[str, str], ...] = ()

    @property
    def offered(self) -> bool:
        """Whether lists of what segments offer it."""
        return self.group in ("system", "baseline")

    @property
    def accepted_hints(self) -> frozenset[str]:
        """Fields of `Hints` that may be given with this method."""
        return self.hints | COMMON_HINTS

    def config_class(self) -> type[MethodConfig]:
        """The pydantic model with every hyperparameter (imports no torch)."""
        return import_module(f"{__package__}.{self.package}.config").CONFIG

    def require_packages(self) -> None:
        """Looks whether what its network is made with is installed.

        Raises:
            MissingPackageError: it is not, and how to get it.
        """
        for module, package in self.needs:
            if find_spec(module) is None:
                raise MissingPackageError(
                    f"{self.title} needs {package}, which is not installed.", f"pip install {package}"
                )


COMMON_HINTS = frozenset({"visible", "anchors", "structures", "locked"})
"""Hints that the level sequence and the merging of results serve, whatever the network."""

_BASELINES = (
    ("unet", "U-Net", "Encoder and decoder with skip connections.", (2, 3),
     "Ronneberger et al., U-Net: convolutional networks for biomedical image segmentation. MICCAI 2015"),
    ("attention-unet", "Attention U-Net", "U-Net whose skip connections are gated by attention.", (2, 3),
     "Oktay et al., Attention U-Net: learning where to look for the pancreas. MIDL 2018"),
    ("unetr", "UNETR", "Transformer encoder with a convolutional decoder.", (2, 3),
     "Hatamizadeh et al., UNETR: transformers for 3D medical image segmentation. WACV 2022"),
    ("segresnet", "SegResNet", "Residual encoder and light decoder.", (2, 3),
     "Myronenko, 3D MRI brain tumor segmentation using autoencoder regularization. BrainLes 2018"),
    ("swin-unetr", "Swin UNETR", "Shifted-window transformer encoder with a convolutional decoder.", (2, 3),
     "Hatamizadeh et al., Swin UNETR: Swin transformers for semantic segmentation of brain tumors. BrainLes 2021"),
    ("dynunet", "DynUNet", "The plain nnU-Net topology.", (2, 3), NNUNET),
    ("fcn", "FCN", "Fully convolutional head on ResNet features.", (2,),
     "Long et al., Fully convolutional networks for semantic segmentation. CVPR 2015"),
    ("deeplabv3", "DeepLabv3", "Atrous spatial pyramid pooling on ResNet features.", (2,),
     "Chen et al., Rethinking atrous convolution for semantic image segmentation. 2017"),
)  # fmt: skip

_SMP = (("segmentation_models_pytorch", "segmentation-models-pytorch"),)
_SMP_METHODS = (
    ("unetplusplus", "U-Net++", "U-Net whose skip connections are nested and dense.",
     "Zhou et al., UNet++: redesigning skip connections to exploit multiscale features. IEEE TMI 2020"),
    ("deeplabv3plus", "DeepLabv3+", "Atrous spatial pyramid with a decoder that reads finer features.",
     "Chen et al., Encoder-decoder with atrous separable convolution for semantic image segmentation. ECCV 2018"),
    ("fpn", "FPN", "Features of all resolutions, summed top down.",
     "Lin et al., Feature pyramid networks for object detection. CVPR 2017"),
    ("upernet", "UPerNet", "Pyramid pooling and a feature pyramid.",
     "Xiao et al., Unified perceptual parsing for scene understanding. ECCV 2018"),
    ("segformer", "SegFormer", "Hierarchical transformer with a decoder of linear layers.",
     "Xie et al., SegFormer: simple and efficient design for semantic segmentation with transformers. NeurIPS 2021"),
)  # fmt: skip

_SAM_METHODS: tuple[tuple[str, str, str, str, frozenset[str]], ...] = (
    ("sam", "SAM", "Segments what boxes or keypoints show; its weights are the user's.",
     "Kirillov et al., Segment anything. ICCV 2023", frozenset({"keypoints"})),
    ("medsam", "MedSAM", "SAM trained on medical images: segments what boxes show; its weights are the user's.",
     "Ma et al., Segment anything in medical images. Nature Communications 2024", frozenset()),
)  # fmt: skip

METHODS: Mapping[str, MethodInfo] = {
    info.id: info
    for info in (
        MethodInfo(
            "atm-net",
            "ATM-Net",
            "system",
            "Swin UNETR whose decoder attends to a sentence about the anatomy: which levels, which slice.",
            "ATM-Net: anatomy-aware text-guided multi-modal fusion for fine-grained lumbar spine segmentation. "
            "arXiv 2504.03476, 2025",
            "atm_net",
            hints=frozenset({"visible"}),
        ),
        MethodInfo(
            "verdiff-net",
            "Verdiff-Net",
            "system",
            "A diffusion starts from a network's mask and refines it; several samples give its uncertainty.",
            "Zhang et al., Verdiff-Net: a conditional diffusion framework for spinal medical image segmentation. "
            "Bioengineering 2024",
            "verdiff_net",
            modalities=("MR", "CT", "XR"),
            hints=frozenset({"prior"}),
            sampling=("samples", "steps", "preview"),
        ),
        MethodInfo(
            "ddpm",
            "Diffusion U-Net",
            "baseline",
            "Conditional diffusion from pure noise, without a prior.",
            "Ho et al., Denoising diffusion probabilistic models. NeurIPS 2020",
            "verdiff_net",
            modalities=("MR", "CT", "XR"),
            sampling=("samples", "steps"),
        ),
        MethodInfo(
            "resenc-unet",
            "Residual-encoder U-Net",
            "baseline",
            "nnU-Net's residual-encoder topology with one head for what a voxel is and one that counts levels.",
            NNUNET + "; Isensee et al., nnU-Net revisited. MICCAI 2024",
            "resenc_unet",
            (2, 3),
        ),
        MethodInfo(
            "la-caf",
            "LA-CAF",
            "system",
            "3D network whose class heads are generated from text embeddings; trains on half-labeled cases.",
            "Guo et al., Self-adaptive vision-language model for 3D segmentation of pulmonary artery and vein. "
            "MICCAI 2025",
            "la_caf",
            (3,),
        ),
        MethodInfo(
            "scar-net",
            "SCAR-Net",
            "system",
            "Keypoints, also learned from cases without masks, make the kernels and weigh the attention of a network.",
            SCARNET,
            "scar_net",
            hints=frozenset({"keypoints"}),
        ),
        MethodInfo(
            "dgmsnet",
            "DGMSNet",
            "baseline",
            "A network that detects keypoints makes the convolution kernels of one that segments.",
            DGMSNET,
            "scar_net",
        ),
        *(MethodInfo(i, t, "baseline", s, c, "baselines", d) for i, t, s, d, c in _BASELINES),
        MethodInfo(
            "bisenet",
            "BiSeNet",
            "comparison",
            "A shallow path keeps detail, a deep one sees far.",
            "Yu et al., BiSeNet: bilateral segmentation network for real-time semantic segmentation. ECCV 2018",
            "bisenet",
        ),
        MethodInfo(
            "swin-unet",
            "Swin-Unet",
            "comparison",
            "Encoder and decoder of shifted-window attention, without convolutions between them.",
            "Cao et al., Swin-Unet: Unet-like pure transformer for medical image segmentation. ECCV workshops 2022",
            "swin_unet",
        ),
        MethodInfo(
            "medsegdiff",
            "MedSegDiff",
            "comparison",
            "Conditional diffusion that encodes the image at every time, led by the noisy mask's lower frequencies.",
            "Wu et al., MedSegDiff: medical image segmentation with diffusion probabilistic model. MIDL 2024",
            "verdiff_net",
            modalities=("MR", "CT", "XR"),
            sampling=("samples", "steps"),
        ),
        *(
            MethodInfo(
                i,
                t,
                "comparison",
                s,
                c,
                "sam",
                hints=frozenset({"prior"}) | h,
                clicks=True,
                needs=(("transformers", "transformers"),),
            )
            for i, t, s, c, h in _SAM_METHODS
        ),
        *(MethodInfo(i, t, "comparison", s, c, "smp", needs=_SMP) for i, t, s, c in _SMP_METHODS),
        MethodInfo(
            "click-refine",
            "Click to correct",
            "correction",
            "A small network that moves the edge of one structure to where the user clicks.",
            "Our design, after Sofiiuk et al., Reviving iterative training with mask guidance for interactive "
            "segmentation. ICIP 2022",
            "click_refine",
            (3,),
            clicks=True,
        ),
    )
}
"""Every method by id."""

DEFAULT_METHOD = "resenc-unet"

CLICK_CHECKPOINT = "click-refine"
"""Name of the checkpoint that corrects by clicks where none is named."""


def method_info(method_id: str) -> MethodInfo:
    """The catalog entry.

    Raises:
        ConfigError: if there is no such method.
    """
    try:
        return METHODS[method_id]
    except KeyError:
        raise ConfigError(f"There is no method “{method_id}”.", f"Available: {', '.join(METHODS)}.") from None


def make_config(method_id: str, preset: str | None = None, /, **values: Any) -> MethodConfig:
    """A validated configuration: the preset's values, then `values` on top.

    Raises:
        ConfigError: unknown method or preset, unknown option, or a value that does not fit.
    """
    presets = method_info(method_id).config_class().presets(method_id)
    if preset is not None and preset not in presets:
        raise ConfigError(f"{method_id} has no preset “{preset}”.", f"It has: {', '.join(presets)}.")
    return _validated(method_id, {**presets.get(preset or "", {}), **values})


def stored_config(values: Mapping[str, Any]) -> MethodConfig:
    """The configuration in a checkpoint or run, of this version or an earlier one.

    Raises:
        ConfigError: as `make_config`.
    """
    method_id = values["method"]
    return _validated(method_id, {**method_info(method_id).config_class().BEFORE, **values})


def _validated(method_id: str, values: Mapping[str, Any]) -> MethodConfig:
    from pydantic import ValidationError

    try:
        return method_info(method_id).config_class().model_validate({**values, "method": method_id})
    except ValidationError as error:
        raise ConfigError(f"The options of {method_id} are not valid: {problems(error)}.") from error


def build_method(config: MethodConfig) -> Method:
    """The network of a configuration, randomly initialized.

    Raises:
        ConfigError: it cannot be built in so many dimensions.
        MissingPackageError: a package that it is made with is not installed.
    """
    info = method_info(config.method)
    if config.dims not in info.dims:
        raise ConfigError(f"{info.title} cannot be built in {config.dims}D.", f"Use dims={info.dims[0]}.")
    info.require_packages()
    return import_module(f"{__package__}.{info.package}.network").build(config)
