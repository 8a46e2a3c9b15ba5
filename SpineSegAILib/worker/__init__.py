"""A process that segments for the panel: ``python -m SpineSegAILib.worker``."""
