"""Sharding, storage and the store start without torch: on small machines it is not even there."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules",
    [
        "gear_data_prep.cli.main, gear_data_prep.sharding.pipeline",
        "gear_data_prep.demo.procedural_corpus",
        "gear_data_prep.corpus_tools.repair, gear_data_prep.corpus_tools.stats_page",
        "gear_data_prep.sources.url_table",
        "gear_dist.storage.base, gear_dist.storage.s3, gear_dist.data.manifest",
        "gear_dist.config.loading",
        "gear_cluster.demo.object_store, gear_cluster.cli.store",
    ],
)
def test_no_torch(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_webdatasets_grouping_comes_without_torch() -> None:
    """The library's own code, without the package's imports; and a later import gets all of it."""
    code = (
        "import sys; from gear_dist.data.tar_samples import sample_key, group_samples;"
        "from gear_dist.data.tar_members import Member;"
        "found = list(group_samples([Member('a/b.c.jpg', 0, 0, 0)]));"
        "assert (found[0].key, sample_key('a/b.c.jpg')) == ('a/b', 'a/b');"
        "assert 'torch' not in sys.modules and 'webdataset' not in sys.modules;"
        "import torch, webdataset;"
        "assert issubclass(webdataset.DataPipeline, torch.utils.data.IterableDataset)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
