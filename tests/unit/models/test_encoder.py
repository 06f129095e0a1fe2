"""Teachers of the transformers library, each family through the front door, at random weights."""

import sys

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from transformers import image_utils

from documented_commands import section
from gear_dist.config.loading import load_config
from gear_dist.config.models import TeacherConfig
from gear_dist.models.teachers import (
    TEACHERS,
    load_teacher,
    load_teachers,
    normalise_features,
    teacher_class,
)
from gear_dist.models.teachers.encoder import EncoderTeacher
from refusals import refused
from tiny_encoders import GRID, LAYOUTS, WIDTH, TinyEncoder, make_encoder, run_tower, save_encoder

NORMALISED = {
    "dinov2": ("none", image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD),
    "dinov3": ("none", image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD),
    "siglip2": ("zscore", image_utils.IMAGENET_STANDARD_MEAN, image_utils.IMAGENET_STANDARD_STD),
    "clip": ("zscore", image_utils.OPENAI_CLIP_MEAN, image_utils.OPENAI_CLIP_STD),
    "vjepa2": ("zscore", image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD),
}
HAS_LEARNED_POSITIONS = ("dinov2", "dinov2-with-registers", "siglip2", "siglip2-naflex", "clip")


@pytest.fixture(scope="module", params=LAYOUTS)
def saved(request, tmp_path_factory):
    """Layout, model, folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, save_encoder(folder, request.param), folder


def load(made, folder, grid_size=GRID, image_size=40, **settings):
    settings = {"normalisation": "none"} | settings
    config = TeacherConfig(name=made.teacher, path=str(folder), **settings)
    return load_teacher(config, image_size=image_size, grid_size=grid_size)


def some_images(size=40):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def pixels_of(images, made, grid_size):
    """The encoder's input, from the constants of the library's own image processors."""
    _, mean, std = NORMALISED[made.teacher]
    pixels = (images + 1) / 2
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    side = made.patch * grid_size
    return F.interpolate(pixels, (side, side), mode="bicubic", align_corners=False)


@pytest.mark.parametrize("block", [0, 2, 3])
def test_features_are_those_of_the_library(saved, block):
    _, made, folder = saved
    features = load(made, folder, block=block)(some_images())
    truth = run_tower(made, pixels_of(some_images(), made, GRID))
    tokens = truth.hidden_states[block] if block else truth.last_hidden_state
    assert features.shape == (2, GRID**2, WIDTH)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, tokens[:, made.num_others :])
    changed = (truth.hidden_states[3] - truth.last_hidden_state).abs().max()
    # CLIP's final norm is for its class token alone.
    assert (changed == 0) == (made.teacher == "clip")


@pytest.mark.parametrize("grid_size", [3, 7])
def test_other_grids_than_the_models_own(saved, grid_size):
    """Rotary positions are the library's at any size; learned ones are resampled."""
    layout, made, folder = saved
    features = load(made, folder, grid_size)(some_images())
    assert features.shape == (2, grid_size**2, WIDTH)
    assert features.isfinite().all()
    if layout in HAS_LEARNED_POSITIONS:
        return
    if layout == "vjepa2":
        made = resized_vjepa2(made, grid_size)
    truth = run_tower(made, pixels_of(some_images(), made, grid_size)).last_hidden_state
    torch.testing.assert_close(features, truth[:, made.num_others :])


def resized_vjepa2(made: TinyEncoder, grid_size: int) -> TinyEncoder:
    config = hf.VJEPA2Config(**made.tower.config.to_dict() | {"crop_size": 16 * grid_size})
    model = hf.VJEPA2Model(config).eval()
    model.load_state_dict(made.tower.state_dict())
    return made._replace(whole=model, tower=model)


@pytest.mark.parametrize("layout", HAS_LEARNED_POSITIONS)
def test_a_constant_field_of_positions_stays_constant(layout, tmp_path):
    """Then the library's interpolation, of another kind, must lead to the same features."""
    made = make_encoder(layout)
    for name, parameter in made.tower.named_parameters():
        if "position_embedding" in name:
            grid = parameter.data.view(-1, WIDTH)[-(GRID**2) :]  # no register has a position
            grid[:] = grid[0].clone()
    made.whole.save_pretrained(tmp_path)
    options = {"interpolate_pos_encoding": True} if layout in ("clip", "siglip2") else {}
    truth = run_tower(made, pixels_of(some_images(), made, 6), **options).last_hidden_state
    features = load(made, tmp_path, grid_size=6)(some_images())
    torch.testing.assert_close(features, truth[:, made.num_others :], rtol=1e-4, atol=1e-4)


def test_each_position_is_its_own_patch(saved, tmp_path):
    """With nothing passing between tokens, a patch moves the feature of its position alone."""
    layout, _, _ = saved
    made = make_encoder(layout)
    for name, parameter in made.tower.named_parameters():
        if name.endswith(("attention.proj.weight", "o_proj.weight", "out_proj.weight")):
            parameter.data.zero_()
    made.whole.save_pretrained(tmp_path)
    side = made.patch * GRID  # no resizing, which spreads a patch
    teacher = load(made, tmp_path, image_size=side)
    images = some_images(side)
    features = teacher(images)
    row, column = 1, 2
    images[:, :, made.patch * row :, made.patch * column :][..., : made.patch, : made.patch] += 0.5
    moved = (teacher(images) - features).abs().amax(dim=(0, 2)) > 1e-4
    assert moved.nonzero().flatten().tolist() == [GRID * row + column]


def test_features_are_the_same_in_bf16(saved):
    """As on CUDA, where the pass runs under autocast; rotary tables may not lose positions."""
    _, made, folder = saved
    teacher = load(made, folder, grid_size=16)
    exact = teacher(some_images())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher(some_images())
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert F.cosine_similarity(rounded, exact, dim=-1).min() > 0.999


def test_normalisation_is_the_familys_own_or_the_settings(saved):
    _, made, folder = saved
    plain = load(made, folder)(some_images())
    usual, _, _ = NORMALISED[made.teacher]
    for settings, mode, alpha in (
        ({"normalisation": "auto"}, usual, 0.6),
        ({"normalisation": "demean", "alpha": 1.0}, "demean", 1.0),
    ):
        features = load(made, folder, **settings)(some_images())
        torch.testing.assert_close(features, normalise_features(plain, mode, alpha))
    assert features.mean(dim=1).abs().max() < 1e-5 * plain.abs().max()  # all of the mean is gone


def test_teachers_are_frozen_and_need_no_torchvision(saved):
    _, made, folder = saved
    teacher = load(made, folder)
    parent = torch.nn.Sequential(teacher).train()
    assert parent.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert "torchvision" not in sys.modules


def test_wrong_image_size_is_refused(saved):
    _, made, folder = saved
    with refused(ValueError, "(B, 3, 40, 40)", "(1, 3, 16, 16)"):
        load(made, folder)(torch.zeros(1, 3, 16, 16))


def test_what_features_do_not_need_is_left_out(saved):
    """Text towers, pooling heads, predictors, blocks after the chosen one."""
    _, made, folder = saved
    teacher = load(made, folder, block=1)
    names = " ".join(name for name, _ in teacher.named_parameters())
    assert not any(word in names for word in ("text", "head", "predictor", "layer.1", "layers.1"))


def test_towers_saved_alone_are_read_too(tmp_path):
    for layout in ("siglip2", "siglip2-naflex", "clip"):
        made = make_encoder(layout)
        made.tower.save_pretrained(tmp_path / layout)
        features = load(made, tmp_path / layout)(some_images())
        truth = run_tower(made, pixels_of(some_images(), made, GRID)).last_hidden_state
        torch.testing.assert_close(features, truth[:, made.num_others :])


def test_one_model_at_several_blocks_runs_once(saved):
    """Its weights are there once, too; features are those of teachers of their own, bit for bit."""
    _, made, folder = saved
    size = 32
    words = [f"data.image_size={size}"]
    for name, block in (("teacher", 1), ("more_teachers.a", 0), ("more_teachers.b", 1)):
        words += [f"{name}.name={made.teacher}", f"{name}.path={folder}"]
        words += [f"{name}.block={block}", f"{name}.normalisation=none"]
    config = load_config(None, words)
    teachers = load_teachers(
        config.teachers, image_size=config.data.image_size, grid_size=config.grid_size
    )
    passes = []
    deepest = teachers[1]
    first = deepest.backbone.get_submodule(deepest.blocks)[0]
    first.register_forward_pre_hook(lambda *_: passes.append(1))
    for images in (some_images(size), some_images(size) / 2):
        found = [teacher(images) for teacher in teachers]
        for teacher_config, features in zip(config.teachers.values(), found, strict=True):
            alone = load_teacher(teacher_config, image_size=size, grid_size=config.grid_size)
            assert torch.equal(features, alone(images))
    assert len(passes) == 2
    assert sum(sum(p.numel() for p in teacher.parameters()) for teacher in teachers) == sum(
        p.numel() for p in deepest.parameters()
    )


def test_several_teachers_in_the_order_of_their_names(tmp_path):
    folders = {layout: tmp_path / layout for layout in ("clip", "dinov3", "vjepa2")}
    made = {layout: save_encoder(folder, layout) for layout, folder in folders.items()}
    config = load_config(
        None,
        [
            "data.image_size=64",
            "teacher.name=clip",
            f"teacher.path={folders['clip']}",
            "more_teachers.second.name=vjepa2",
            f"more_teachers.second.path={folders['vjepa2']}",
            "more_teachers.first.name=dinov3",
            f"more_teachers.first.path={folders['dinov3']}",
            "more_teachers.first.block=1",
        ],
    )
    teachers = load_teachers(
        config.teachers, image_size=config.data.image_size, grid_size=config.grid_size
    )
    assert [type(teacher) for teacher in teachers] == [
        teacher_class(name) for name in ("clip", "dinov3", "vjepa2")
    ]
    assert [teacher.normalisation for teacher in teachers] == ["zscore", "none", "zscore"]
    images = some_images(64)
    alone = load(made["dinov3"], folders["dinov3"], image_size=64, block=1)
    torch.testing.assert_close(teachers[1](images), alone(images))


def test_the_documented_table_is_what_the_families_are():
    """Its models are those whose sizes are known without the hub."""
    lines = section("training.md", "Teachers").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    rows = [row[1:-1] for row in rows if row[:1] == [""] and len(row) == 7 and "`" in row[1]]
    families = {row[0].strip("`"): row for row in rows if row[0] != "`teacher.name`"}
    assert families.keys() == TEACHERS.keys()
    for name, (_, paths, patch, _, normalisation) in families.items():
        family = teacher_class(name)
        assert normalisation == family.usual_normalisation
        if issubclass(family, EncoderTeacher):
            assert patch == ", ".join(map(str, family.patch_sizes))
            assert set(paths.replace("`", "").split(", ")) <= family.published.keys()
