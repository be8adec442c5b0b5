"""What leaves a training: weight files."""

from squint.export.files import load, save

__all__ = ["load", "save"]
