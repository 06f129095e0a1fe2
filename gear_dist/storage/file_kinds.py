"""Recognises hidden files, and what is no checkpoint (LFS pointer, web page). No torch."""

from pathlib import Path

_LOOKED_AT = 512
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")
_ARCHIVES = (b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh", b"Rar!")


def not_a_checkpoint(path: Path) -> str:
    """What a file is that is surely none of tensors, with the fix; empty: it may be one.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as stream:
        start = stream.read(_LOOKED_AT)
    if not start:
        return "an empty file, not a checkpoint"
    if start.startswith(_LFS):
        return "a Git LFS pointer, not a checkpoint: run `git lfs pull`, or download the file"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return "a web page, not a checkpoint: download the file itself (is a login needed?)"
    if start.startswith(_ARCHIVES):
        return "a compressed archive, not a checkpoint: unpack it"
    if _is_text(start):
        return "a text, not a checkpoint"
    return ""


def _is_text(start: bytes) -> bool:
    # Pickles of the oldest protocol are text as well, and end a line after their first words.
    words = start.decode("utf-8", "ignore")
    return len(words) > 8 and words.isascii() and words.replace("\n", "").isprintable()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own, such as what macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"
