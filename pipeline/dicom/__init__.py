"""DICOM: find series, judge their geometry, read them as volumes, and write segmentations back."""

from pipeline.dicom.model import Frame, PassedOver, Reason, Scan, Series, Volume
from pipeline.dicom.tree import scan

__all__ = ["Frame", "PassedOver", "Reason", "Scan", "Series", "Volume", "scan"]
