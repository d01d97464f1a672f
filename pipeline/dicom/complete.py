"""Slices missing at an end of a volume, which no geometry shows: what the header's counts say."""

from __future__ import annotations

from pipeline.dicom.slices import Group


def incomplete(group: Group) -> list[str]:
    """Notes on InstanceNumber, ImagesInAcquisition and NumberOfSlices that do not agree with the slices found.

    None of them is reliable enough to refuse a volume; volumes split from a series number their slices anyhow.
    """
    headers = [part.header for part in group.slices]
    if group.split or any(len(header.frames) > 1 for header in headers):
        return []
    notes = []
    expected = max((header.images_expected or 0 for header in headers), default=0)
    if expected > len(headers):
        notes.append(
            f"the header speaks of {expected} images, {len(headers)} were found: slices may be missing at an end"
        )
    numbers = {header.instance_number for header in headers if header.instance_number is not None}
    if len(numbers) == len(headers):
        first, last = min(numbers), max(numbers)
        if first > 1:
            notes.append(f"InstanceNumber begins at {first}: slices may be missing at an end")
        if last - first + 1 > len(numbers):
            notes.append(f"InstanceNumber leaves out {last - first + 1 - len(numbers)} of {first} to {last}")
    return notes
