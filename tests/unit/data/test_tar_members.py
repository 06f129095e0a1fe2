"""Tar headers: those of every writer are read, hostile ones end the walk with a reason."""

import io
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gear_dist.data.tar_members import TarDamageError, walk_members
from image_files import tar_bytes
from refusals import refused

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def walk(data: bytes) -> dict[str, bytes]:
    def read(position: int, length: int) -> bytes:
        return data[position : position + length]

    return {m.name: data[m.offset : m.offset + m.size] for m in walk_members(read, 0, len(data))}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_pythons_writer(kind: int) -> None:
    members = {
        "a.jpg": b"x" * 700,
        "empty.txt": b"",
        "f" * 90 + "/" + "g" * 90 + ".jpg": b"long name",
        "ünïcode.txt": b"y",
        "exact.bin": b"z" * 512,
    }
    assert walk(tar_bytes(members, format=kind)) == members


def test_links_folders_and_devices_are_no_members() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "../../etc/passwd"), (tarfile.DIRTYPE, "d"),
                           (tarfile.CHRTYPE, "null"), (tarfile.LNKTYPE, "hard")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("real.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ok"))
    assert walk(stream.getvalue()) == {"real.txt": b"ok"}


def _claiming(size_field: bytes) -> bytes:
    """A tar whose one member claims another size; the header's checksum is right."""
    data = bytearray(tar_bytes({"a": b"x" * 100}))
    data[124:136] = size_field
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        _claiming(b"77777777777\0"),
        _claiming(b"\x80" + b"\x7f" * 11),
        _claiming(b"\xff" * 12),
        _claiming(b"-0000000001\0"),
        _claiming(b"nonsense!!!\0"),
        tar_bytes({"a": b"x" * 5000})[:3000],
        tar_bytes({"a": b"x" * 500})[:700],
        b"no tar" * 200,
    ],
)
def test_damage_has_a_reason(data: bytes) -> None:
    with refused(TarDamageError, "byte"):
        walk(data)


def test_a_large_extended_header_is_refused() -> None:
    members = {"x": b""}
    data = bytearray(tar_bytes(members, format=tarfile.PAX_FORMAT, pax_headers={"k": "v"}))
    huge = tarfile.TarInfo("pax")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 21
    hostile = huge.tobuf(tarfile.USTAR_FORMAT) + b"\0" * (1 << 21) + bytes(data)
    with refused(TarDamageError, "header", "2097152 bytes"):
        walk(hostile)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_changed_bytes_never_crash(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    tar = bytearray(tar_bytes({"a" * 60 + "/" + "b" * 60: b"1" * 600, "b.txt": b"2"}, format=kind))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(tar) - 1))
        tar[position] = data.draw(st.integers(0, 255))
    try:
        found = walk(bytes(tar[: data.draw(st.integers(0, len(tar)))]))
        assert sum(map(len, found.values())) <= len(tar)
    except TarDamageError:
        pass
