"""A synthetic lumbar spine in MR."""

from typing import TYPE_CHECKING

from ...lazy import lazy_exports

if TYPE_CHECKING:
    from .make import Phantom, make_phantom, sample_case
    from .spec import SAMPLE_SPEC, Contrast, PhantomSpec, Variant, random_spec
else:
    __getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
