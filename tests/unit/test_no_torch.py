"""Sharding, storage and the store start without torch: on small machines it is not even there."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules",
    [
        "gear_data_prep.cli, gear_data_prep.corpus, gear_data_prep.sample_corpus",
        "gear_data_prep.repair, gear_data_prep.stats_page, gear_data_prep.sources.url_table",
        "gear_dist.storage, gear_dist.storage_s3, gear_dist.data.manifest, gear_dist.config_files",
        "gear_cluster.object_store, gear_cluster.store_cli",
    ],
)
def test_no_torch(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
