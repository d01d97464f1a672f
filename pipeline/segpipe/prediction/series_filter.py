"""Which DICOM series of a tree a batch takes: by the options, and by what the bundle says of its channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segpipe.bundle import stated_modality, units_of
from segpipe.common.channel_names import channel_names
from segpipe.errors import UsageError
from segpipe.prediction.options import Options

if TYPE_CHECKING:
    from segpipe.dicom import ChannelRule, Series


@dataclass(frozen=True)
class SeriesFilter:
    """Which series to take.

    Attributes:
        modality: any of these; empty takes all.
        description: SeriesDescription has a match of it.
        min_slices, max_slices: of the volume.
        names: SeriesInstanceUIDs and case ids; empty takes all. Of a study's channels those alone that one of them is.
        captures: SeriesInstanceUIDs and case ids of Secondary Captures that are taken whatever else is asked for.
        derived: kinds of series computed from others that are taken without being named.
        channels: of the bundle; a series is one channel.
        rules: of a bundle with several channels, which series is which; empty where that cannot be told.
        units: by the index of a channel, the unit that the bundle was trained on, where it says one.
    """

    modality: tuple[str, ...] = ()
    description: re.Pattern[str] | None = None
    min_slices: int | None = None
    max_slices: int | None = None
    names: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    captures: tuple[str, ...] = ()
    channels: int = 1
    rules: tuple[ChannelRule, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)

    def rule_against(self, series: Series, beside: Sequence[Series] = ()) -> str | None:
        """Return the rule that leaves a series out, None where it is taken.

        A number of slices that is not known, as of a file that is cut short, leaves nothing out.

        Args:
            series: to judge.
            beside: the series that were found with it.
        """
        if {series.series_uid, series.case_id} & set(self.captures):
            return self._several
        if self.names and not self._is_named(series) and not self._completes(series, beside):
            return "series"
        if series.is_picture:
            return "secondary-capture"
        slices = series.shape[2] if series.shape else series.slice_count
        unknown = series.is_capture and series.modality == "OT"
        if self.modality and series.modality.upper() not in self.modality and not unknown:
            return "modality"
        if self.description is not None and not self.description.search(series.description):
            return "series-description"
        if self.min_slices is not None and slices and slices < self.min_slices:
            return "min-slices"
        if self.max_slices is not None and slices > self.max_slices:
            return "max-slices"
        if not self._is_named(series) and not set(series.derived) <= set(self.derived):
            return f"derived: {', '.join(series.derived)}"
        return self._several

    def _is_named(self, series: Series) -> bool:
        return bool({series.series_uid, series.case_id} & set(self.names))

    def _completes(self, series: Series, beside: Sequence[Series]) -> bool:
        """Return whether it may be a channel that no named series of its study is, where one is named."""
        named = [one for one in beside if self._is_named(one) and one.study_uid == series.study_uid]
        free = [rule for rule in self.rules if not any(rule.fits(one) for one in named)]
        return bool(named) and any(rule.fits(series) for rule in free)

    @property
    def _several(self) -> str | None:
        """Return the rule against any series where a bundle takes several that cannot be told."""
        return "channels" if self.channels != 1 and not self.rules else None


def make_filter(metadata: Mapping[str, Any], channels: int, options: Options) -> SeriesFilter:
    """Return the filter of the options; without a modality it is the one that a bundle's metadata states, if any."""
    from segpipe.dicom import channels_by_name

    names = channel_names(metadata)
    if options.channel and (channels == 1 or len(options.channel) != channels):
        raise UsageError(
            "--channel does not name the channels of the bundle",
            found=", ".join(rule.name for rule in options.channel),
            expected=", ".join(names) or f"{channels} of them",
            hint="give it once for each of several channels, in their order; of one, --modality chooses series",
        )
    rules = options.channel or (channels_by_name(names) if len(names) == channels > 1 else None) or ()
    modality = tuple(name.upper() for name in options.modality) or (() if rules else stated_modality(metadata))
    return SeriesFilter(
        modality,
        options.series_description,
        options.min_slices,
        options.max_slices,
        options.series,
        options.derived,
        options.secondary_capture,
        channels,
        rules,
        units_of(metadata),
    )
