"""Every error that the toolkit raises on purpose; each message names the cause and the fix."""

from __future__ import annotations

from preprocessing.errors import Error, ImageError, InputError

__all__ = ["CheckpointError", "ConfigError", "DeviceError", "Error", "ImageError", "InputError", "TrainingError"]


class ConfigError(Error):
    """A configuration file is missing, malformed, or asks for an architecture that is not supported."""


class CheckpointError(Error):
    """Weights are missing, damaged, or do not fit the model that the configuration describes."""


class DeviceError(Error):
    """The device or dtype asked for is not available."""


class TrainingError(Error):
    """A training run cannot go on: its loss or gradient is not finite."""
