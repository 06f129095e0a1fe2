"""All that report.html shows of a run, read once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gear_dist.config.compare import flatten
from gear_dist.runs.lock import is_abandoned
from gear_dist.runs.run_folder import Grid, RunFolder, Status


class RunRecord(NamedTuple):
    """All that the page shows, read once."""

    name: str
    config: dict[str, Any]
    """Settings by dotted name."""
    status: Status | None
    records: list[dict[str, Any]]
    grids: list[Grid]
    evaluation: Mapping[str, Any] | None
    environment: Mapping[str, Any]
    is_abandoned: bool = False
    """Whether its command is gone, whatever its status says."""


def read_record(folder: RunFolder) -> RunRecord:
    """Read a run folder, finished or not."""
    return RunRecord(
        name=folder.path.resolve().name,
        config=flatten(folder.read_config_dict()),
        status=folder.read_status(),
        records=folder.read_metrics(),
        grids=folder.list_grids(),
        evaluation=folder.read_evaluation(),
        environment=folder.read_environment(),
        is_abandoned=is_abandoned(folder.path.absolute()),
    )
