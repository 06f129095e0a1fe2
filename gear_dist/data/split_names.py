"""Which split a file or folder belongs to, by its name. No torch."""

import re

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "eval": VALIDATION,
    "test": TEST,
    "testing": TEST,
}


def folder_split(name: str) -> str:
    """The split of a folder that is called like one, in any case, such as `Val` or `val2017`;
    else empty."""
    return _WORDS.get(name.casefold().rstrip("0123456789"), "")


def split_of(name: str) -> str:
    """The split that a word of a file's path names, of its outermost folder that has such a word;
    `train` where none does."""
    for part in name.split("/"):
        found = {folder_split(word) for word in re.split(r"[-_. ]+", part)}
        for split in (TEST, VALIDATION, TRAIN):
            if split in found:
                return split
    return TRAIN
