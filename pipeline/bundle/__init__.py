"""Bundles: MONAI's folder format for a trained model, written by `export_bundle` and opened by `open_bundle`."""

from __future__ import annotations

from pipeline.bundle.export import export_bundle
from pipeline.bundle.open import Bundle, open_bundle

__all__ = ["Bundle", "export_bundle", "open_bundle"]
