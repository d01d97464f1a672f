"""Who and how a series was scanned, as far as its header says it and a model's population is described by it.

Free text may hold anything, a name as well: of words only those are taken that are known to be no name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from segpipe.dicom.frames import text
from segpipe.dicom.model import Series
from segpipe.dicom.privacy import no_header_text

TAGS = (
    *("PatientAge", "PatientBirthDate", "StudyDate", "SeriesDate", "PatientSex", "Manufacturer", "BodyPartExamined"),
    *("MagneticFieldStrength", "ConvolutionKernel", "PatientPosition"),
)
AGE_UNITS = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}  # of each in a year
GAUSS = 10_000  # in a tesla, which some scanners write
MOST_TESLA = 25.0
MOST_YEARS_SAID = 129
MOST_YEARS = 110  # from a date of birth: what is more is a date that was made up
MADE_UP = date(1900, 1, 1)  # a date of birth that stands for one that was taken out
MAKERS = """
    SIEMENS GE PHILIPS TOSHIBA CANON HITACHI FUJIFILM FUJI UIH UNITED SHIMADZU NEUSOFT MEDISO ESAOTE CARESTREAM BRUKER
    MINFOUND PARAMED HYPERFINE ELSCINT PICKER MARCONI VARIAN ELEKTA ACCURAY
"""
POSITIONS = "HFS HFP HFDR HFDL FFS FFP FFDR FFDL LFS LFP LFDR LFDL RFS RFP RFDR RFDL SITTING"
BODY_PARTS = """
    ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM BLADDER BRAIN BREAST CHEST CHESTABDOMEN CHESTABDPELVIS COLON CSPINE
    CTSPINE CARDIAC ELBOW EXTREMITY EYE FEMUR FOOT HAND HEAD HEADNECK HEART HIP JAW KIDNEY KNEE LEG LIVER LSPINE
    LSSPINE LUNG MEDIASTINUM NECK NECKCHEST ORBIT PANCREAS PAROTID PELVIS PROSTATE RECTUM SHOULDER SKULL SPINE SPLEEN
    SSPINE THORAX THYROID TLSPINE TSPINE UTERUS WHOLEBODY WRIST
"""  # PS3.16 Annex L, those that are scanned as volumes
KERNELS = "STANDARD STND SOFT SMOOTH BONE BONEPLUS LUNG DETAIL EDGE CHEST ULTRA SHARP"
KERNEL = re.compile(r"[A-Z]{1,2}\d{1,3}[A-Z]?")  # as Br40f, B30f, FC18, I31s


def covariates_of(series: Series) -> dict[str, str | float]:
    """Return what the first file of a series says, by the names that a manifest has; words in capitals.

    A contrast phase stands in no tag that can be relied on, and is never among it. What is no age or strength, and no
    known word, is left out.

    Returns:
        ``age_years``, ``sex``, ``maker``, ``field_strength_t``, ``kernel``, ``body_part``, ``position``; {} where the
        header cannot be read.
    """
    with no_header_text():
        try:
            header = pydicom.dcmread(
                Path(series.files[0]), force=True, stop_before_pixels=True, specific_tags=list(TAGS)
            )
            found = _of_header(header)
        except Exception:  # noqa: BLE001 - pydicom raises what it likes, with header text in it; then nothing is known
            return {}
    return {name: value for name, value in found.items() if value is not None}


def _of_header(header: Dataset) -> dict[str, str | float | None]:
    maker = _words(header, "Manufacturer")
    return {
        "age_years": _age(header),
        "sex": _of("".join(_words(header, "PatientSex")), "F M O"),
        "maker": _of(maker[0], MAKERS) if maker else None,  # "SIEMENS" and "Siemens Healthineers" are one
        "field_strength_t": _tesla(header),
        "kernel": _kernel(_words(header, "ConvolutionKernel")),
        "body_part": _of("".join(_words(header, "BodyPartExamined")), BODY_PARTS),
        "position": _of("".join(_words(header, "PatientPosition")), POSITIONS),
    }


def _words(header: Dataset, name: str) -> list[str]:
    return re.findall(r"[A-Z0-9]+", text(header, name).upper())


def _of(word: str, known: str) -> str | None:
    return word if word in known.split() else None


def _kernel(words: Sequence[str]) -> str | None:
    """Return the first word of a kernel; what follows is how strongly it is applied."""
    return words[0] if words and (words[0] in KERNELS.split() or KERNEL.fullmatch(words[0])) else None


def _age(header: Dataset) -> float | None:
    """Return years, whole ones, at most 90: of PatientAge, else from birth to the study; None for what is made up."""
    said = text(header, "PatientAge").strip().upper()
    if len(said) >= 2 and said[:-1].isdecimal() and said[-1] in AGE_UNITS:
        if said[-1] == "Y" and not int(said[:-1]):  # of a child below one there are months, weeks or days
            return None
        years, most = int(said[:-1]) / AGE_UNITS[said[-1]], MOST_YEARS_SAID
    else:
        born, seen = _date(header, "PatientBirthDate"), _date(header, "StudyDate") or _date(header, "SeriesDate")
        if born is None or born == MADE_UP or seen is None:
            return None
        years, most = (seen - born).days / 365.25, MOST_YEARS
    return min(float(math.floor(years)), 90.0) if 0 <= years < most + 1 else None


def _date(header: Dataset, name: str) -> date | None:
    try:
        return datetime.strptime(text(header, name).strip(), "%Y%m%d").date()
    except ValueError:
        return None


def _tesla(header: Dataset) -> float | None:
    try:
        value = float(text(header, "MagneticFieldStrength"))
    except ValueError:
        return None
    value = value / GAUSS if value > MOST_TESLA else value
    return round(value, 2) if 0 < value <= MOST_TESLA else None
