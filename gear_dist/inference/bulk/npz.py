"""The .npz of ADM's evaluator: arr_0 uint8 (N, H, W, 3), arr_1 classes; rows in a random order.

Written row after row, because 50,000 images of 256 pixels are 10 GB.
"""

import contextlib
import io
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from gear_dist.errors import DataError
from gear_dist.inference.bulk.plan import BulkPlan, sample_key, tar_key
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage

NPZ_KEY = "samples.npz"
_DATE = (1980, 1, 1, 0, 0, 0)


def write_npz(storage: Storage, plan: BulkPlan) -> None:
    """Write `samples.npz` beside the tars, atomically.

    Raises:
        DataError: a tar is missing or damaged. StorageError: the destination or the temporary
            folder refuses.
    """
    side, order = plan.image_size, plan.rows()
    with (
        _local_tars(storage, plan) as folder,
        storage.writer(NPZ_KEY) as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file,
    ):
        with _member(file, "arr_0.npy", (plan.num, side, side, 3), np.uint8) as images:
            for row in _rows(folder, plan, order):
                images.write(row)
        if not plan.prompts:
            with _member(file, "arr_1.npy", (plan.num,), np.int64) as labels:
                labels.write(np.array(plan.labels(order), np.int64).tobytes())


@contextlib.contextmanager
def _member(
    file: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: type[np.generic]
) -> Iterator[BinaryIO]:
    """An array's file, to which its bytes are written next."""
    with file.open(zipfile.ZipInfo(name, _DATE), "w", force_zip64=True) as stream:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": shape})
        yield stream  # type: ignore[misc]


@contextlib.contextmanager
def _local_tars(storage: Storage, plan: BulkPlan) -> Iterator[Path]:
    """The folder of the tars; a temporary copy of those of a store."""
    if isinstance(storage, FileStorage):
        yield storage.root
        return
    with tempfile.TemporaryDirectory(prefix="gear-npz-") as scratch:
        for tar in range(plan.num_tars):
            path = Path(scratch, tar_key(tar))
            path.parent.mkdir(exist_ok=True)
            storage.download(tar_key(tar), path)
        yield Path(scratch)


class _Tar:
    """A tar whose members are read in any order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115 - closed by `close`
            self._members = {member.name: member for member in self._tar}
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{path}: not a readable tar: {error}") from None

    def pixels(self, name: str, side: int) -> np.ndarray:
        """A PNG of it, (H, W, 3)."""
        try:
            member = self._tar.extractfile(self._members[name])
            assert member is not None
            found = np.asarray(Image.open(io.BytesIO(member.read())).convert("RGB"))
        except (KeyError, OSError, SyntaxError, tarfile.TarError) as error:
            raise DataError(f"{self._path}: {name} cannot be read: {error}") from None
        if found.shape != (side, side, 3):
            raise DataError(f"{self._path}: {name} is not of {side} x {side} pixels")
        return found

    def close(self) -> None:
        """Close the file."""
        self._tar.close()


def _rows(folder: Path, plan: BulkPlan, order: list[int]) -> Iterator[bytes]:
    """Pixels of the samples in this order."""
    with contextlib.ExitStack() as closing:
        tars = [_Tar(folder / tar_key(tar)) for tar in range(plan.num_tars)]
        for tar in tars:
            closing.callback(tar.close)
        for sample in order:
            tar = tars[sample // plan.samples_per_tar]
            yield tar.pixels(f"{sample_key(sample)}.png", plan.image_size).tobytes()
