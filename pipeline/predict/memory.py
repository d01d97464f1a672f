"""Amounts of memory as a user writes them."""

from __future__ import annotations

import re

from pipeline.errors import UsageError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes of an amount such as ``4G``, ``1500M`` or ``2.5GiB``, in powers of 1024.

    Raises:
        UsageError: it is no amount above 0.
    """
    match = AMOUNT.fullmatch(text.strip())
    amount = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if amount <= 0:
        raise UsageError(
            "not an amount of memory", found=text, expected="a number with K, M, G or T, e.g. 4G"
        )
    return amount
