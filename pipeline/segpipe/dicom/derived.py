"""What images were computed from others: projections, reformatted stacks, subtractions, maps, virtual energies.

They lie on a grid as good as any, and show something else than the scanner measured. DERIVED in ImageType alone says
little: ordinary reconstructions of MR and PET, and whatever an anonymiser touched, have it. So what counts is the words
behind the first two (PS3.3 C.7.6.1.1.2 and the modalities' own, and those that vendors write), how an enhanced image's
frames were made of a volume, and the codes of a derivation. Its free text is never read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import get_args

from segpipe.dicom.model import Derived

KINDS: tuple[Derived, ...] = get_args(Derived)
# words of a value, without what separates them, in the order in which they are looked for
_WORDS: dict[Derived, str] = {
    "localizer": r"LOCALI[SZ]ER\w*|SCOUT\w*|TOPOGRAM\w*|SURVEY\w*",
    "subtraction": r"SUB|SUBTRACT\w*|SUBTRAKTION",
    "projection": r"MIP\w*|MINIP\w*|MNIP|MAXIP|MAX IP|MIN IP|AV[EG]?IP|PROJECTION|PJN|COLLAPSE|RAYSUM|VRT|"
    r"(VOLUME|SURFACE) ?RENDER\w*|MAXIMUM|MINIMUM",
    "reformatted": r"C?MPR\w*|CPR|MPVR|REFORMAT\w*|RESAMPLED|RESLICED?|CURVED",
    "map": r"\w*MAPS?|[EX]?ADC|EXPADC|FA|TENSOR|FRACTIONAL ANISOTROPY|DIFFUSION (ANISO|ATTNTD)|R?CB[FV]|R?MTT|TTP|TMAX|"
    r"KTRANS|IAUC|NEI|PERMEABILITY|PARAMETRIC|PDFF|FAT ?FRACTION|R2 ?STAR|QSM|SUSCEPTIBILITY|STIFFNESS|ELASTOGRAM|"
    r"VELOCITY|TEMPERATURE|STD ?DEV(IATION)?|Z ?SCORE|T ?TEST|R COEFF|SCM|TCS|METABOLITE",
}
_SPECTRAL = (  # of CT: monoenergetic, virtual non-contrast, materials
    r"VMI\w*|MONO(?!CHROME)\w*|\d*KEV|GSI|VNC\w*|VUE|VUC|VIRTUAL|IODINE\w*|MAT|MD|EFF ATOMIC|Z ?EFF|ZEFF\w*|"
    r"ELECTRON DENSITY|RHO|CALCIUM\w*|URIC\w*"
)
# where the image says that it is derived
_COMPUTED = r"ADDITION|DIVISION|MULTIPLICATION|MASKED|MEAN|AVERAGE|CALC\w*|COMPUTED\w*|SYNTHETIC\w*"
_CODES: dict[Derived, tuple[int, ...]] = {  # of DCM, PS3.16 CID 7203 and what it replaced
    "subtraction": (113062,),
    "projection": (113048, 113051, 113074, 113075, 113078, 113079),
    "reformatted": (113072, 113073, 113085),
    "map": (
        113041,
        113044,
        113045,
        113050,
        113052,
        *range(113054, 113062),
        *range(113063, 113066),
        *range(113067, 113072),
    ),
    "computed": (113042, 113046, 113047, 113049, 113053),
}
_KIND_OF_CODE = {str(code): kind for kind, codes in _CODES.items() for code in codes}


def kind_of_code(scheme: str, value: str) -> Derived | None:
    """Return what a code of a derivation says."""
    return _KIND_OF_CODE.get(value) if scheme == "DCM" else None


@lru_cache
def kind_of_words(image_type: str, technique: str = "", modality: str = "") -> Derived | None:
    """Return what ImageType or FrameType, joined by backslashes, and the technique say."""
    first, *values = [re.sub(r"[^A-Z0-9]+", " ", value.upper()).strip() for value in image_type.split("\\")]
    values = [*values[1:], re.sub(r"[^A-Z0-9]+", " ", technique.upper())]
    patterns = dict(_WORDS)
    if modality == "CT":
        patterns["spectral"] = _SPECTRAL
    if first == "DERIVED":
        patterns["computed"] = _COMPUTED
    for kind, pattern in patterns.items():
        if any(re.search(rf"\b({pattern})\b", value) for value in values):
            return kind
    return None
