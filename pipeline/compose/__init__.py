"""Fragments and overrides become one MONAI config; what MONAI would pass in silence is refused here."""

from pipeline.compose.fragments import (
    OWNED,
    Composed,
    compose,
    configs_folder,
    known_fragments,
    read_comment,
    read_fragment,
)
from pipeline.compose.patch import check_network, padded_patch
from pipeline.compose.settings import Settings
from pipeline.compose.targets import check_components

__all__ = [
    "OWNED",
    "Composed",
    "Settings",
    "check_components",
    "check_network",
    "compose",
    "configs_folder",
    "known_fragments",
    "padded_patch",
    "read_comment",
    "read_fragment",
]
