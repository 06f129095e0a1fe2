"""Which samples of a corpus are taken: by part, licence, caption type and size. No torch."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from gear_dist.data.origins import SampleOrigin

SUBSET, LICENSE, CAPTION_TYPE, MIN_SIDE = "subset", "license", "caption-type", "min-side"
SETTINGS = {
    SUBSET: "subsets",
    LICENSE: "licenses",
    CAPTION_TYPE: "caption_types",
    MIN_SIDE: "min_side",
}
"""The setting of each filter, by the kind under which counts name what it leaves out."""


class SampleFilters(NamedTuple):
    """What a sample must be to be taken; an empty field excludes none."""

    subsets: tuple[str, ...] = ()
    """Parts of the source (`split`), in any case."""
    licenses: tuple[str, ...] = ()
    """Licences as shell patterns, in any case: cc0*, cc-by-4.0."""
    caption_types: tuple[str, ...] = ()
    """A sample needs a caption of one of these."""
    min_side: int = 0
    """Pixels of the shorter side, at least."""

    def takes_subset(self, subset: str) -> bool:
        """Whether a part of the source is taken; one that is not stated is none of them."""
        return not self.subsets or subset.casefold() in {name.casefold() for name in self.subsets}

    def takes_license(self, license_name: str) -> bool:
        """Whether a licence is taken; one that is not stated is not, where any is asked for."""
        return not self.licenses or (
            bool(license_name) and any(matches_license(license_name, p) for p in self.licenses)
        )

    def takes_types(self, caption_types: Sequence[str]) -> bool:
        """Whether a sample with captions of these types is taken."""
        return not self.caption_types or any(kind in self.caption_types for kind in caption_types)

    def takes_size(self, width: int, height: int) -> bool:
        """Whether an image of this size is taken."""
        return min(width, height) >= self.min_side

    def refusal_of_origin(self, origin: SampleOrigin) -> str:
        """The kind of filter that leaves the sample out; empty: none does."""
        if not self.takes_subset(origin.split):
            return SUBSET
        return "" if self.takes_license(origin.license) else LICENSE


def matches_license(license_name: str, pattern: str) -> bool:
    """Whether a licence is one that a pattern means."""
    return fnmatchcase(license_name.casefold(), pattern.casefold())
