"""Where a checkpoint comes from: a local file, or a file of a Hugging Face repository."""

import re
from pathlib import Path

from gear_dist.errors import ConfigError, DataError
from gear_dist.formatting import first_line

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_HUB_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[\w./-]+)")


def find_source(source: str) -> Path:
    """The local file of a source; a hub file is fetched into the hub's own cache.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN act as everywhere.

    Args:
        source: a path, or OWNER/REPOSITORY/FILE of the hub.

    Raises:
        ConfigError: it is neither. DataError: the hub cannot be reached or has no such file.
    """
    path = Path(source)
    if path.is_file():
        return path
    match = _HUB_FILE.fullmatch(source)
    if path.exists() or match is None or not match["file"].endswith(SUFFIXES):
        raise ConfigError(
            f"{source}: no such file, and not a hub name OWNER/REPOSITORY/FILE with a FILE in "
            f"{', '.join(SUFFIXES)}"
        )
    return _fetch(match["repository"], match["file"])


def _fetch(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # LocalEntryNotFoundError: offline, or no connection, and not in the cache.
    expected = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
    try:
        return Path(hf_hub_download(repository, file))
    except expected as error:
        detail = first_line(error)
        raise DataError(
            f"{repository}/{file}: unavailable from the hub: {detail} Download the file where "
            "there is a connection and give its path"
        ) from None
