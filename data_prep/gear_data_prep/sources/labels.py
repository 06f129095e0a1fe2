"""Classes of images that lie in no class folder, from a file of labels."""

from gear_data_prep.sources.files import read_lines
from gear_data_prep.sources.splits import class_name
from gear_dist.data.tar_samples import sample_key
from gear_dist.errors import DataError


def read_labels(path: str, keys: list[str], names: dict[str, int]) -> dict[str, int]:
    """Class index by the image's key.

    Args:
        path: of a text file: one class name a line in the order of the keys, or lines of a file
            name and its class, separated by a comma or blanks, of which the rest is skipped.
        keys: names of the images without their suffix, in order.
        names: class index by class name.

    Raises:
        DataError: it cannot be read, or gives an image no class.
    """
    found = [class_name(line) for line in read_lines(path)]
    lines = [line.replace(",", " ").split() for line in found]
    if all(len(words) == 1 or line in names for line, words in zip(found, lines, strict=True)):
        if len(lines) != len(keys):
            raise DataError(
                f"--labels {path}: {len(lines)} labels for {len(keys)} images: give a line for "
                "each image in the order of names, or lines of name and label"
            )
        pairs = dict(zip(keys, found, strict=True))
    else:
        pairs = {sample_key(words[0]): words[1] for words in lines if len(words) > 1}
    missing = next((key for key in keys if pairs.get(key) not in names), None)
    if missing is not None:
        raise DataError(
            f"--labels {path}: no class, or none of the training classes, for {missing}: correct "
            "its line"
        )
    return {key: names[pairs[key]] for key in keys}
