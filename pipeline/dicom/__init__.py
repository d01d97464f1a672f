"""DICOM: find series, judge their geometry, read them as volumes, and write segmentations back."""

from pipeline.dicom.model import Frame, PassedOver, Reason, Scan, Series, Volume
from pipeline.dicom.series import scan
from pipeline.dicom.volume import load, load_series

__all__ = ["Frame", "PassedOver", "Reason", "Scan", "Series", "Volume", "load", "load_series", "scan"]
