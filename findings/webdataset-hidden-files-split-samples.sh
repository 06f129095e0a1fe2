#!/bin/bash
# webdataset 1.0.2: a hidden file inside a folder of a tar is a sample of its own and ends the sample
# that it stands in, so that images lose their captions; at the top of a tar it is passed over.
#
# `tar cf x.tar data` on macOS puts data/._NAME (AppleDouble) before every data/NAME. base_plus_ext
# gives "data/._0001.jpg" the key "data/" and the suffix "_0001.jpg": its pattern is free to take the
# folder for the key's name. Two samples of image and caption become eight: four junk ones, and image
# and caption apart. Nothing is raised or warned of.
#
# A good guess: hidden files never match, as "._0001.jpg" at the top does not, and two samples come.
# Seen on 2026-11-27, Python 3.11:
#   in data/  : ['data/', 'data/0001', 'data/', 'data/0001', 'data/', 'data/0002', 'data/',
#              'data/0002']; with image and text: 0
#   at the top: ['0001', '0002']; with image and text: 2
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/lib" \
    webdataset==1.0.2 braceexpand==0.1.7 numpy==2.3.5 PyYAML==6.0.3
cd "$folder"
PYTHONPATH="$folder/lib" python3 - <<'PY'
import io
import sys
import tarfile

import webdataset


def write(path, prefix):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key in ("0001", "0002"):
            for suffix in ("jpg", "txt"):
                for name in (f"{prefix}._{key}.{suffix}", f"{prefix}{key}.{suffix}"):
                    info = tarfile.TarInfo(name)
                    info.size = len(name)
                    tar.addfile(info, io.BytesIO(name.encode()))


def read(path):
    samples = list(webdataset.WebDataset(path, shardshuffle=False))
    whole = sum("jpg" in sample and "txt" in sample for sample in samples)
    return [sample["__key__"] for sample in samples], whole


write("folder.tar", "data/")
write("top.tar", "")
for name, (keys, whole) in (("in data/", read("folder.tar")), ("at the top", read("top.tar"))):
    print(f"{name:10}: {keys}; with image and text: {whole}")
expected = ["data/", "data/0001"] * 2 + ["data/", "data/0002"] * 2
if read("folder.tar") != (expected, 0) or read("top.tar") != (["0001", "0002"], 2):
    sys.exit("the behaviour has changed")
PY
