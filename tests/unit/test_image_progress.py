"""Progress of work on images."""

import pytest

from gear_dist.progress import ImageProgress


def test_progress_tells_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = ImageProgress("shard train", 1000, every_s=1, clock=lambda: now[0])
    now[0] = 2.0
    progress.advance(200, 50_000_000)
    now[0] = 4.0
    progress.advance(300, 1, timed=False)
    now[0] = 5.0
    assert progress.finish() == 5.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "shard train: 200 of 1,000 images, 100 images/s, 25 MB/s, 8s left",
        "shard train: 500 of 1,000 images, 50 images/s, 12 MB/s, 10s left",
    ]
