"""All series with one fault that a reader may pass over in silence.

`python tests/dicom/traps.py FOLDER` writes them, one folder each.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trap import Trap
from traps_of_files import ENCODINGS, HIGH_BITS, LENGTHS
from traps_of_series import CONSISTENCY, PARTS, PLACED

TRAPS: dict[str, Trap] = {**LENGTHS, **ENCODINGS, **HIGH_BITS, **PLACED, **CONSISTENCY, **PARTS}

if __name__ == "__main__":
    for _name, _trap in TRAPS.items():
        _trap.make(Path(sys.argv[1]) / _name.replace(" ", "_").replace(",", ""))
