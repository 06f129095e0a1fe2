"""Hugging Face repositories: files and models that come from them, and models that go there."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from gear_dist.errors import ConfigError, DataError
from gear_dist.formatting import first_line

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
MODEL_FILES = ["*.safetensors", "config.json", "classes.json", "README.md"]
"""What of a repository is a model of ours."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
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

    with _hub_errors(
        f"{repository}/{file}", "Download the file where there is a connection and give its path"
    ):
        return Path(hf_hub_download(repository, file))


def is_repository_name(name: str) -> bool:
    """Whether this could be OWNER/NAME of the hub."""
    return _REPOSITORY.fullmatch(name) is not None


def fetch_model(
    repository: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """A model folder of the hub, in the hub's own cache: weights, configuration and card alone.

    Raises:
        DataError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(repository, "Download it where there is a connection and give the folder"):
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=MODEL_FILES,
            )
        )


def push_folder(
    folder: Path,
    repository: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder to a repository, which is made where it is absent; the commit's URL.

    Raises:
        ConfigError: no repository's name. DataError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    if not is_repository_name(repository):
        raise ConfigError(f"{repository}: is no hub repository: use OWNER/NAME")
    api = HfApi(token=token)
    with _hub_errors(repository, "Check HF_TOKEN and whether you may write there"):
        api.create_repo(repository, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            allow_patterns=MODEL_FILES,
        )
    return str(done.commit_url)


@contextlib.contextmanager
def _hub_errors(name: str, advice: str) -> Iterator[None]:
    """The hub's errors as one of ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # LocalEntryNotFoundError: offline, or no connection, and not in the cache.
    expected = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
    try:
        yield
    except expected as error:
        detail = first_line(error)
        raise DataError(f"{name}: unavailable from the hub: {detail} {advice}") from None
