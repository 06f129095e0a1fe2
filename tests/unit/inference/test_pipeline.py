"""A trained tokenizer in use: how many images go through it at a time."""

import pytest
import torch

import public_files as files
from gear_dist.inference.model_folder import open_model
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.interop.import_public import import_checkpoints


def test_large_images_go_through_the_tokenizer_a_few_at_a_time(tmp_path):
    """Two of 512 pixels at once, and the same result as one by one."""
    torch.save(files.reference_state("tokenizer_vq"), tmp_path / "vq.pt")
    import_checkpoints(
        [str(tmp_path / "vq.pt")], tmp_path / "model", overrides=["data.image_size=512"]
    )
    pair = GearPipeline.load(open_model(tmp_path / "model"), torch.device("cpu"))
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    sizes = []
    pair.tokenizer.encoder.register_forward_hook(lambda *call: sizes.append(len(call[1][0])))
    together = pair.reconstruct(images)
    assert sizes == [2, 1]
    alone = torch.cat([pair.reconstruct(image[None]) for image in images])
    assert (together.int() - alone.int()).abs().max() <= 1, "but for rounding"
    assert pair.encode(images).shape == (3, 16)


@pytest.mark.parametrize("family", ["vq", "lfq", "ibq"])
def test_an_image_is_decoded_to_the_same_bytes_in_every_batch(family, tmp_path):
    """Also where indices come from another device's batch, and where batches are filled up."""
    torch.save(files.reference_state(f"tokenizer_{family}"), tmp_path / "tokenizer.pt")
    import_checkpoints([str(tmp_path / "tokenizer.pt")], tmp_path / "model")
    pair = GearPipeline.load(open_model(tmp_path / "model"), torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    size = pair.config.tokenizer.codebook_size
    indices = torch.randint(0, size, (8, 16), generator=random)
    whole = pair.decode(indices)
    for batch in (1, 3):
        parts = [pair.decode(part, fixed_batches=batch == 3) for part in indices.split(batch)]
        assert torch.equal(torch.cat(parts), whole)
