"""SpineSegAI: spine segmentation for radiologists and researchers. Research use only.

The package imports neither torch nor monai; those come in with `SpineSegAILib.inference` and `SpineSegAILib.training`.
"""

__version__ = "0.1.0"
