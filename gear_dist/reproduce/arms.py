"""The arms that are compared, as differences from one configuration."""

from typing import Literal, NamedTuple

WARM_UP = "warm-up"


class Arm(NamedTuple):
    """One way to train a generator, on a tokenizer that it may train too."""

    name: str
    text: str
    """What it is, for the table."""
    stage: Literal["joint", "generator"]
    settings: tuple[str, ...] = ()
    start: str = WARM_UP
    """What its tokenizer starts from: the warm-up, or another arm's end with the same seed."""


_NO_SOFT = ("alignment.soft_weight=0",)
_ALIGNED_ALONE = Arm(
    "joint-without-soft-alignment", "joint, alignment of the generator alone", "joint", _NO_SOFT
)
"""Leaves, bit for bit, the tokenizer of the joint arm without alignment: none reaches either."""
_JOINT = (
    Arm("gear", "GEAR: joint, soft alignment to the tokenizer", "joint"),
    Arm(
        "joint-without-alignment",
        "joint, no alignment anywhere",
        "joint",
        (*_NO_SOFT, "alignment.hard_weight=0"),
    ),
    _ALIGNED_ALONE,
    Arm(
        "ste",
        "joint, straight-through estimator",
        "joint",
        ("alignment.estimator=straight-through", "collapse.patience=0"),
    ),
)
ARMS = {
    arm.name: arm
    for arm in (
        Arm("llamagen-repa", "LlamaGen-REPA: the warm-up's tokenizer, frozen", "generator"),
        *_JOINT,
        *(
            Arm(
                f"fresh-on-{joint.name}",
                f"a fresh generator on {joint.name}'s last tokenizer, frozen",
                "generator",
                start=joint.name,
            )
            for joint in _JOINT
            if joint is not _ALIGNED_ALONE
        ),
    )
}
"""By name. LlamaGen-REPA is itself a fresh generator, on the warm-up's tokenizer."""
BASELINE = "llamagen-repa"
