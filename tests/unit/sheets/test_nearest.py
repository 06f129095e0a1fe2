"""The k nearest of a stream: against a plain search, whatever the batches."""

import pytest
import torch

from gear_dist.sheets.nearest import Nearest, Scaling

K = 3


def images(count: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=random)


def search(queries_QVF: torch.Tensor, others: torch.Tensor, size: int) -> Nearest:
    found = Nearest(queries_QVF, K, keep=True)
    for start in range(0, len(others), size):
        part = others[start : start + size]
        names = [str(start + i) for i in range(len(part))]
        pixels = torch.arange(start, start + len(part))[:, None, None, None].expand(-1, 3, 1, 1)
        found.add(part, names, pixels)
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_those_of_a_plain_search(size: int) -> None:
    queries, others = images(8, 0).view(4, 2, 5), images(40, 1)
    others[30] = queries[2, 1]
    others[33] = others[31] = others[5]
    found = search(queries, others, size)
    wanted = (queries[:, :, None] - others).square().sum(-1).sqrt()
    values, views = wanted.min(1)
    for query in range(4):
        order = values[query].argsort(stable=True)[:K]
        assert found.names[query] == list(map(str, order.tolist()))
        assert torch.allclose(found.distances_Qk[query], values[query][order], atol=1e-6)
        assert torch.equal(found.views_Qk[query], views[query][order])
        kept = [int(pixels[0, 0, 0]) for pixels in found.images[query]]
        assert kept == order.tolist()
    assert found.distances_Qk[2, 0] == 0, "not what a matrix product would leave of it"


def test_what_is_kept_is_no_view_of_a_batch() -> None:
    found = search(images(2, 0).view(2, 1, 5), images(40, 1), 40)
    sizes = {pixels.untyped_storage().nbytes() for row in found.images for pixels in row}
    assert sizes == {3 * 8}


def test_without_keeping_there_are_distances_alone() -> None:
    found = Nearest(images(2, 0).view(2, 1, 5), 1, keep=False)
    found.add(images(4, 1), list("abcd"), torch.zeros(4, 3, 1, 1))
    assert found.names == found.images == []
    assert found.distances_Qk.isfinite().all()


def test_no_feature_counts_for_its_unit() -> None:
    features = images(4000, 2)
    units = torch.tensor([1.0, 1e-3, 1e4, 1.0, 1.0])
    shifted = torch.tensor([0.0, 0.0, 0.0, 7.0, 0.0])
    one, other = Scaling.of(features), Scaling.of(features * units + shifted)
    assert torch.allclose(one(features), other(features * units + shifted), atol=1e-4)
    scaled = one(features)
    apart = (scaled[:2000] - scaled[2000:]).norm(dim=1)
    assert apart.square().mean() == pytest.approx(2, rel=0.05), "as unrelated images are"


def test_a_feature_that_never_changes_is_left_out() -> None:
    features = torch.cat([images(50, 3), torch.full((50, 1), 4.0)], 1)
    scaled = Scaling.of(features)(features)
    assert torch.equal(scaled[:, 5], torch.zeros(50))
    assert torch.allclose(scaled[:, :5], Scaling.of(features[:, :5])(features[:, :5]))
