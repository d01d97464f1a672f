"""DICOM: find series, judge their geometry, read them as volumes, and write segmentations back."""
