"""An ImageFolder of real photographs, from those that scikit-image bundles under free licences."""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image

PHOTOGRAPHS = {
    # Class: file in scikit-image's package; public domain or CC0, as skimage.data's docstrings say.
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
}
_SMALLEST_CROP = 160


def write_photo_folder(folder: Path, crops: int = 10, seed: int = 0) -> Path:
    """Write FOLDER/CLASS/NAME.jpg: `crops` random crops (of 160 pixels a side and more, of any
    shape) of each of four photographs; the folder.
    """
    random = np.random.default_rng(seed)
    bundled = Path(skimage.__file__).parent / "data"
    for name, file in PHOTOGRAPHS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        with Image.open(bundled / file) as photograph:
            image = photograph.convert("RGB")
        for number in range(crops):
            width, height = (int(random.integers(_SMALLEST_CROP, side + 1)) for side in image.size)
            left = int(random.integers(0, image.width - width + 1))
            top = int(random.integers(0, image.height - height + 1))
            piece = image.crop((left, top, left + width, top + height))
            piece.save(folder / name / f"{name}-{number:03d}.jpg", quality=92)
    return folder
