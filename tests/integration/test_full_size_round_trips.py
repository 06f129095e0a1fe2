"""Models of the published sizes, in and out, bit for bit. Random weights stand in for trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import public_files as files
from gear_dist.inference.model_folder import open_model
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.interop.export import export_model
from gear_dist.interop.import_public import import_checkpoints
from public_layouts import GENERATORS, TOKENIZERS, read_layout

SLOW = pytest.mark.slow  # files of 0.3 to 4.2 GB each
PUBLISHED_GENERATORS = ("c2i/LlamaGen-B", "t2i/LlamaGen-1B")
MODELS = [
    "VQ-16",
    *(
        pytest.param(name, marks=SLOW)
        for name in ("VQ-8", "LFQ-16", "IBQ-16", *PUBLISHED_GENERATORS)
    ),
]


def random_state(name: str) -> files.State:
    random = torch.Generator().manual_seed(0)
    shapes = read_layout(name)[1]
    return {key: torch.randn(shape, generator=random) / 10 for key, shape in shapes.items()}


def public_file(name: str, state: files.State, folder: Path) -> Path:
    path = folder / "public.ckpt"
    if name.startswith("c2i"):
        return files.llamagen_generator_file(path, state, 16, 64)
    if name.startswith("t2i"):
        return files.gear_text_generator_file(path, state)
    if name.startswith("VQ"):
        return files.llamagen_tokenizer_file(path, state)
    return files.lightning_file(path, state)


@pytest.mark.parametrize("name", MODELS)
def test_published_sizes_round_trip_bit_for_bit(name, tmp_path):
    """Public file, model folder, public file, model folder: the same tensors in each."""
    state = random_state(name)
    network = "generator" if name in GENERATORS else "tokenizer"
    source = public_file(name, state, tmp_path)
    report = import_checkpoints([str(source)], tmp_path / "model")
    assert report.used[0].num_parameters == read_layout(name)[0]
    source.unlink()
    model = open_model(tmp_path / "model")
    wanted = {**TOKENIZERS, **GENERATORS}[name]
    assert getattr(model.config, network) == wanted
    [written] = export_model(model, tmp_path / "public", "public")
    import_checkpoints([str(written)], tmp_path / "again")
    for folder in ("model", "again"):
        found = load_file(tmp_path / folder / f"{network}.safetensors")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state), folder


@SLOW
@pytest.mark.parametrize("name", ["VQ-16", "LFQ-16", "IBQ-16"])
def test_a_published_size_encodes_and_decodes(name, tmp_path):
    """One 64-px image through the imported tokenizer: what it decodes is of the codes it gave."""
    source = public_file(name, random_state(name), tmp_path)
    import_checkpoints([str(source)], tmp_path / "model", overrides=["data.image_size=64"])
    tokenizer = GearPipeline.load(open_model(tmp_path / "model"), torch.device("cpu")).tokenizer
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        out = tokenizer(images)
    decoded = tokenizer.decode(tokenizer.encode(images))
    assert torch.allclose(decoded, out.reconstruction, rtol=1e-4, atol=1e-4)
