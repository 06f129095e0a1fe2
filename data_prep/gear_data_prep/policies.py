"""Actions for irregular samples, by kind: `--policy KIND=ACTION`."""

from typing import NamedTuple

from gear_dist.errors import ConfigError

KEEP, CONVERT, SKIP, QUARANTINE = "keep", "convert", "skip", "quarantine"
_LEAVE_OUT = (QUARANTINE, SKIP)


class Policy(NamedTuple):
    """A kind of odd sample."""

    meaning: str
    allowed: tuple[str, ...]
    """The first is the default."""


POLICIES: dict[str, Policy] = {
    "empty": Policy("no bytes", _LEAVE_OUT),
    "no-image": Policy("a sample without an image", _LEAVE_OUT),
    "extra-image": Policy(
        "further images in a sample, such as a mask: the one under the plain suffix, KEY.jpg, is "
        "taken",
        (KEEP, QUARANTINE, SKIP),
    ),
    "duplicate-name": Policy(
        "two members of one name in a sample: keep takes the first", (QUARANTINE, SKIP, KEEP)
    ),
    "undecodable": Policy("no image, or a damaged or truncated one", _LEAVE_OUT),
    "corrupt": Policy(
        "decodes, but with errors that the strict check finds", (QUARANTINE, SKIP, KEEP)
    ),
    "too-large": Policy("more pixels, scans or bytes than allowed", _LEAVE_OUT),
    "too-long": Policy("aspect ratio above 50:1", _LEAVE_OUT),
    "mislabelled": Policy("another format than its suffix says", (CONVERT, KEEP, QUARANTINE, SKIP)),
    "format": Policy(
        "GIF or TIFF, which the loader does not read: made PNG", (CONVERT, QUARANTINE, SKIP)
    ),
    "cmyk": Policy("CMYK: converted to RGB", (CONVERT, KEEP, QUARANTINE, SKIP)),
    "palette": Policy("indexed colours: made RGB", (CONVERT, KEEP, QUARANTINE, SKIP)),
    "16-bit": Policy(
        "more than 8 bits per channel, or floats in 0..1: converted to 8 bits",
        (CONVERT, KEEP, QUARANTINE, SKIP),
    ),
    "animated": Policy("several frames: the first one", (CONVERT, KEEP, QUARANTINE, SKIP)),
    "transparency": Policy(
        "transparent pixels: kept as they are; composited over "
        "--background where pixels are re-encoded, by the loader over data.background",
        (KEEP, CONVERT, QUARANTINE, SKIP),
    ),
    "orientation": Policy(
        "EXIF orientation: the tag is kept and the loader applies it; re-encoded images "
        "anew are upright",
        (KEEP, CONVERT, QUARANTINE, SKIP),
    ),
    "no-class": Policy("no class", (KEEP, QUARANTINE, SKIP)),
    "no-caption": Policy("no caption, or a blank one", (KEEP, QUARANTINE, SKIP)),
    "bad-caption": Policy("a caption that is not UTF-8 text", (QUARANTINE, SKIP, CONVERT)),
    "sidecar": Policy("attributes of another form than expected", _LEAVE_OUT),
    "not-fetched": Policy("a URL that gave no image", (SKIP, QUARANTINE)),
    "broken-tar": Policy("a source tar that is empty or truncated", (QUARANTINE,)),
}


def parse_policies(choices: list[str]) -> dict[str, str]:
    """The action for every kind, from KIND=ACTION texts.

    Raises:
        ConfigError: an unknown kind, or an action that is not possible for it.
    """
    actions = {kind: policy.allowed[0] for kind, policy in POLICIES.items()}
    for choice in choices:
        kind, _, action = choice.partition("=")
        if kind not in POLICIES:
            raise ConfigError(f"--policy {choice}: use one of {', '.join(POLICIES)}")
        if action not in POLICIES[kind].allowed:
            allowed = ", ".join(POLICIES[kind].allowed)
            raise ConfigError(f"--policy {choice}: for {kind} use {allowed}")
        actions[kind] = action
    return actions


def describe_policies() -> str:
    """A line a kind, for `--help`."""
    return "\n".join(
        f"  {kind:14} {policy.meaning} ({' | '.join(policy.allowed)})"
        for kind, policy in POLICIES.items()
    )
