"""Settings: layers, overrides, and the one clear line that a wrong one gets."""

import pytest
import yaml

from gear_dist.config.compare import differing_settings
from gear_dist.config.loading import config_from_dict, config_yaml, load_config, load_saved_config
from gear_dist.config.models import TeacherConfig
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError
from refusals import refused


def test_later_layers_win(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "data: {image_size: 64, flip: 0.1}\noptimizer: {eps: 1e-6}\n"
    )
    (tmp_path / "run.yaml").write_text("base: base.yaml\ndata: {flip: 0.2}\n")
    config = load_config(tmp_path / "run.yaml", ["optimizer.betas=[0.8,0.9]"])
    assert (config.data.image_size, config.data.flip) == (64, 0.2)
    assert config.optimizer.eps == 1e-6  # a float, though YAML 1.1 reads it as a string
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.engine == RunConfig().engine


TEXTS = ["010", "1.10", "12:30", "on", "No", "1e5", "null", "~", "0x1f", "1_000", "2026-11-27"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_keeps_its_characters(tmp_path, text):
    """YAML 1.1 reads them as 8, 1.1, 750, True, ... wherever they stand."""
    names = ["run.name", "teacher.path", "more_teachers.b.path", "log.wandb_project"]
    words = [*(f"{name}={text}" for name in names), f"data.mixture=[{text}, '{text}']"]
    (tmp_path / "run.yaml").write_text(
        f"run: {{name: {text}}}\nteacher:\n  path: {text}\nmore_teachers: {{b: {{path: {text}}}}}\n"
        f"log: {{wandb_project: '{text}'}}\ndata:\n  mixture:\n  - {text}\n  - \"{text}\"\n"
    )
    for config in (load_config(None, words), load_config(tmp_path / "run.yaml")):
        assert (config.run.name, config.teacher.path) == (text, text)
        assert (config.more_teachers["b"].path, config.log.wandb_project) == (text, text)
        assert config.data.mixture == (text, text)
        (tmp_path / "saved.yaml").write_text(config_yaml(config))
        assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize("text", ["${nope}", "${", "${oc.env:HOME}", "\\${x}", "a\\\\${x}", "\\"])
def test_nothing_is_looked_up_in_a_text(tmp_path, text):
    """OmegaConf would: another setting, or a variable of the environment by a file of others."""
    (tmp_path / "run.yaml").write_text(f"data: {{train: '{text}'}}\n")
    for config in (
        load_config(None, [f"data.train={text}"]),
        load_config(tmp_path / "run.yaml"),
        config_from_dict({"data": {"train": text}}),
    ):
        assert config.data.train == text
        (tmp_path / "saved.yaml").write_text(config_yaml(config))
        assert load_config(tmp_path / "saved.yaml") == config
        assert load_saved_config(tmp_path / "saved.yaml") == config
        assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["data"]["train"] == text


def test_a_file_counts_where_it_is_named_last(tmp_path):
    for name, text in (
        ("a", "base: b.yaml\nrun: {seed: 1}\n"),
        ("b", "run: {seed: 2, threads: 2}\n"),
        ("c", "base: b.yaml\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)

    def seed(*names):
        return load_config([tmp_path / f"{name}.yaml" for name in names]).run.seed

    assert seed("a", "b") == 2
    assert seed("b", "a") == seed("a", "b", "a") == 1
    assert seed("a", "c") == 1, "a base that both have counts once"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("'010'", "010"),
        ('"a b"', "a b"),
        ("a: b", "a: b"),
        ("#1", "#1"),
        ("[a]", "[a]"),
        ("a'", "a'"),
    ],
)
def test_an_override_is_taken_as_it_stands_unless_it_is_quoted(text, name):
    assert load_config(None, [f"run.name={text}"]).run.name == name


def test_names_that_a_user_chooses_keep_their_characters(tmp_path):
    (tmp_path / "run.yaml").write_text("more_teachers: {010: {block: 2}, on: {block: 3}}")
    config = load_config(tmp_path / "run.yaml", ["more_teachers.1e5.block=4"])
    assert {name: one.block for name, one in config.more_teachers.items()} == {
        "010": 2,
        "on": 3,
        "1e5": 4,
    }


def test_numbers_and_choices_are_what_their_type_says(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "run: {seed: 010}\nengine: {zero_stage: 2, deterministic: on}\nlog: {wandb: off}\n"
        "optimizer: {eps: 1e-6, betas: [0.8, 9e-1]}\ndata: {validation:, mixture:}\nteacher:\n"
    )
    config = load_config(tmp_path / "run.yaml")
    assert (config.run.seed, config.engine.zero_stage, config.log.wandb) == (10, 2, "off")
    assert config.engine.deterministic is True
    assert (config.optimizer.eps, config.optimizer.betas) == (1e-6, (0.8, 0.9))
    assert (config.data.validation, config.data.mixture) == ("", ())
    words = ["engine.zero_stage=3", "data.validation=", "data.mixture="]
    config = load_config(None, ["data.validation=x", "data.mixture=[a]", *words])
    assert (config.engine.zero_stage, config.data.validation, config.data.mixture) == (3, "", ())


def test_aliases_and_merges_of_yaml_work(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "teacher: &first {name: clip, path: 010}\nmore_teachers: {b: {<<: *first, block: 2}}\n"
    )
    teacher = load_config(tmp_path / "run.yaml").more_teachers["b"]
    assert teacher == TeacherConfig(name="clip", path="010", block=2)


def test_later_overrides_win():
    words = ["data={image_size: 64, flip: 0.1}", "data.flip=0.2", "data.flip=0.3"]
    data = load_config(None, words).data
    assert (data.image_size, data.flip) == (64, 0.3)
    for pair in (["run.seed=1", "run=3"], ["run.name=a", "run.name.x=3"]):
        with pytest.raises(ConfigError):
            load_config(None, pair)


def test_teachers_beside_the_first_have_names(tmp_path):
    (tmp_path / "base.yaml").write_text("more_teachers: {b: {name: clip, path: x}, c: {block: 2}}")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nmore_teachers: {a: {path: z}}\n")
    config = load_config(tmp_path / "run.yaml", ["more_teachers.b.path=y", "teacher.name=dinov3"])
    assert config.teachers == {
        "teacher": TeacherConfig(name="dinov3"),
        "more_teachers.a": TeacherConfig(path="z"),
        "more_teachers.b": TeacherConfig(name="clip", path="y"),
        "more_teachers.c": TeacherConfig(block=2),
    }
    assert list(config.teachers)[1:] == ["more_teachers.a", "more_teachers.b", "more_teachers.c"]
    (tmp_path / "saved.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "saved.yaml") == config


def test_later_files_win_and_a_base_counts_once(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {image_size: 64, flip: 0.1}\n")
    (tmp_path / "one.yaml").write_text("base: base.yaml\ndata: {flip: 0.2}\n")
    (tmp_path / "two.yaml").write_text("base: [base.yaml]\ndata: {decode_threads: 3}\n")
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    data = load_config(files, ["data.prefetch_batches=7"]).data
    assert (data.image_size, data.flip) == (64, 0.2), "two's base does not undo one"
    assert (data.decode_threads, data.prefetch_batches) == (3, 7)
    (tmp_path / "two.yaml").write_text("data: {flip: 0.3}\n")
    assert load_config(files).data.flip == 0.3
    assert load_config(files[::-1]).data.flip == 0.2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.image_siz=64", ["data.image_siz", "data.image_size"]),
        ("image_size=64", ["setting image_size", "data.image_size"]),
        ("data=64", ["data.NAME=VALUE"]),
        ("data.image_size", ["key=value"]),
        ("data.image_size=big", ["data.image_size=big", "whole"]),
        ("run.seed=1e3", ["run.seed=1e3", "whole"]),
        ("run.seed=7.0", ["run.seed=7.0", "whole"]),
        ("optimizer.eps=small", ["optimizer.eps=small", "number"]),
        ("engine.deterministic=2", ["engine.deterministic=2", "true or false"]),
        ("engine.zero_stage=4", ["engine.zero_stage=4", "0, 1, 2, 3"]),
        ("data.mixture=s3://x", ["data.mixture=s3://x", "data.mixture=[s3://x]"]),
        ("tokenizer.channel_multipliers=[a]", ["tokenizer.channel_multipliers=a", "whole"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas=['0.9']", "2 values"]),
        ("run.name=???", ["run.name=???"]),
        ("run.seed=???", ["run.seed=???"]),
        ("stages.joint.steps=-1", ["stages.joint.steps=-1"]),
        ("run.launcher=slurm", ["run.launcher=slurm", "ray", "local"]),
        ("data.image_size=250", ["data.image_size=250", "16", "tokenizer.channel_multipliers"]),
        ("tokenizer.codebook_size=0", ["tokenizer.codebook_size=0", "at least 1"]),
        ("tokenizer.channels=100", ["tokenizer.channels=100", "norm_groups=32"]),
        ("tokenizer.channel_multipliers=[]", ["tokenizer.channel_multipliers=[]"]),
        ("tokenizer.entropy_temperature=0", ["tokenizer.entropy_temperature=0.0", "> 0"]),
        ("tokenizer.attention_levels=[5]", ["tokenizer.attention_levels=[5]", "-5 to 4"]),
        ("tokenizer.quantizer=lfq", ["tokenizer.codebook_size=16384", "tokenizer.code_width=14"]),
        ("generator.tap_layer=13", ["generator.tap_layer=13", "num_layers=12"]),
        ("generator.width=770", ["generator.width=770", "num_heads=12"]),
        ("generator.class_dropout=1.0", ["generator.class_dropout=1.0", "0 <= value < 1"]),
        ("alignment.soft_temperature=0", ["alignment.soft_temperature=0.0", "> 0"]),
        ("discriminator.norm=layer", ["discriminator.norm=layer", "batch", "group"]),
        ("discriminator.norm_groups=0", ["discriminator.norm_groups=0", "at least 1"]),
        ("discriminator.lecam_weight=-1", ["discriminator.lecam_weight=-1", "at least 0"]),
        ("discriminator.lecam_decay=1.0", ["discriminator.lecam_decay=1.0", "0 <= value < 1"]),
        ("optimizer.clip_norm=-1", ["optimizer.clip_norm=-1", "at least 0"]),
        ("sampling.top_p=0", ["sampling.top_p=0", "(0, 1]"]),
        ("engine.zero_stage=4", ["engine.zero_stage=4"]),
        ("data.flip=2", ["data.flip=2", "0 to 1"]),
        ("optimizer.generator_lr=inf", ["optimizer.generator_lr=inf", "finite"]),
        ("optimizer.generator_lr=nan", ["optimizer.generator_lr=nan", "finite"]),
        ("optimizer.betas=[0.9,inf]", ["optimizer.betas=inf", "finite"]),
        ("run.seed=1180591620717411303424", ["run.seed=1180591620717411303424"]),
        ("run.name=a/b", ["run.name='a/b'", "folder"]),
        ("log.every_steps=0", ["log.every_steps=0", "at least 1"]),
        ("teacher.block=-1", ["teacher.block=-1", "at least 0"]),
        ("more_teachers.b.alpha=2", ["more_teachers.b.alpha=2", "0 to 1"]),
        ("more_teachers.b.name=vit", ["more_teachers.b.name=vit", "dinov3"]),
        ("more_teachers.b.pth=x", ["more_teachers.b.pth", "more_teachers.b.path"]),
        ("more_teacher.b.path=x", ["more_teacher.b.path", "more_teachers.NAME.path"]),
        ("more_teachers.b=x", ["more_teachers.b.NAME=VALUE"]),
        ("more_teachers=x", ["more_teachers.NAME=VALUE"]),
        ("optimizer.tokenizer_lr=.inf", ["optimizer.tokenizer_lr", ".inf"]),
        ("sampling.guidance=.nan", ["sampling.guidance"]),
        (f"run.seed={10**30}", ["run.seed", "64 bits"]),
        ("run.seed=" + "9" * 5000, ["run.seed"]),
        ("run.root=a\0b", ["run.root"]),
        ("run.root=\udcff", ["run.root"]),
        ('run.root="a\\nb"', ["run.root", "control characters"]),
        ("stages.init_networks=3", ["stages.init_networks"]),
        (f"generator.num_layers={10**18}", ["generator.num_layers", "at most"]),
        (f"discriminator.num_layers={10**18}", ["discriminator.num_layers", "at most"]),
        (f"tokenizer.channel_multipliers=[{10**18}]", ["tokenizer.channel_multipliers"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(override, words):
    with refused(ConfigError, *words):
        load_config(None, [override])


def test_groups_must_divide_the_channels_that_have_group_norm():
    words = ["discriminator.width=12", "discriminator.norm_groups=16"]
    load_config(None, words)
    with refused(ConfigError, *words, "24 channels"):
        load_config(None, [*words, "discriminator.norm=group"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", ["run.yaml", "sections"]),
        ("data: {image_size: [\n", ["run.yaml", "YAML", "line 2"]),
        ("run: {seed: 1}\nrun: {seed: 2}\n", ["run.yaml", "line 2", "twice"]),
        ("data: &a [*a]\n", ["run.yaml", "YAML", "50 deep"]),
        ("data:\n\timage_size: 32\n", ["run.yaml", "YAML", "line 2"]),
        ("run:\n  seed: 1\n  name: a: b\n", ["run.yaml", "YAML", "line 3"]),
        ("run.name: a\n", ["run.yaml", "run.name", "run: {name: ...}"]),
        ("run: {name: [a, b]}\n", ["run.yaml", "run.name=['a', 'b']"]),
        ("run: {name: '???'}\n", ["run.name=???"]),
        ('run: {name: "a\\0b"}\n', ["run.name"]),
        ("base: {a: b}\n", ["run.yaml", "base={'a': 'b'}"]),
        ("base: run.yaml\n", ["run.yaml", "circle"]),
        ("base: 5\n", ["/5", "no such"]),
        ("base: [5]\n", ["/5", "no such"]),
        ("stages: 5\n", ["run.yaml", "stages.NAME=VALUE"]),
        ('run: {seed: "${nope}"}\n', ["run.yaml", "run.seed=${nope}"]),
        ('data: {train: "\\0"}\n', ["data.train"]),
        ("base: nowhere.yaml\n", ["/nowhere.yaml", "no such"]),
        ("dta: {image_size: 32}\n", ["run.yaml", "dta.image_size", "data.image_size"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with refused(ConfigError, *words):
        load_config(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud83d"])
def test_a_file_that_no_system_has_is_refused(name):
    with pytest.raises(ConfigError):
        load_config(name)


def test_base_files_behind_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "run.yaml").write_text("base: loop.yaml\n")
    with refused(ConfigError, tmp_path / "loop.yaml"):
        load_config(tmp_path / "run.yaml")


def test_a_batch_that_does_not_divide():
    config = load_config(None, ["engine.global_batch=10", "engine.accumulation=2"])
    assert config.engine.micro_batch(5) == 1
    with refused(ConfigError, "engine.global_batch=10", "engine.accumulation", "3 x 2"):
        config.engine.micro_batch(3)


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        ([], ["data.train"]),
        (["data.train=x"], ["stages", "0 steps", "stages.tokenizer.steps"]),
        (
            ["data.train=x", "stages.joint.steps=1"],
            ["losses.lpips_weight=1.0", "losses.lpips_vgg16_path", "losses.lpips_heads_path"],
        ),
        (
            ["data.train=x", "stages.joint.steps=1", "generator.class_dropout=0"],
            ["sampling.guidance=2.0", "generator.class_dropout=0", "sampling.guidance=1"],
        ),
        (
            ["data.train=x", "stages.generator.steps=1"],
            ["stages.generator.steps", "stages.tokenizer.steps", "stages.joint.steps"],
        ),
        (
            [
                "data.train=x",
                "stages.generator.steps=1",
                "stages.init_from=there",
                "stages.init_networks=[generator]",
            ],
            ["stages.generator.steps", "stages.init_from"],
        ),
    ],
)
def test_a_run_that_cannot_start_says_what_it_wants(overrides, settings):
    with refused(ConfigError, *settings):
        load_config(None, overrides).check_trainable()


def test_only_a_tokenizer_that_is_trained_needs_the_files_of_lpips():
    words = ["data.train=x", "stages.generator.steps=1", "stages.init_from=there"]
    load_config(None, words).check_trainable()
    with refused(ConfigError, "losses.lpips_weight=1.0", "losses.lpips_vgg16_path"):
        load_config(None, [*words, "stages.joint.steps=1"]).check_trainable()


def test_numbers_in_lists_are_finite_too():
    with refused(ConfigError, "data.mixture_weights=inf"):
        load_config(None, ["data.mixture=[a]", "data.mixture_weights=[1,inf]"])


def test_an_unknown_rate_names_all_three():
    networks = ("tokenizer", "discriminator", "generator")
    with refused(ConfigError, "optimizer.lr", *(f"optimizer.{name}_lr" for name in networks)):
        load_config(None, ["optimizer.lr=1"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stages.start_from=x", "stages.init_from"),
        ("stages.start_networks=[tokenizer]", "stages.init_networks"),
        ("watchdog.patience=1", "collapse.patience"),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(old, new):
    with refused(ConfigError, old.partition("=")[0], new):
        load_config(None, [old])


def test_what_a_run_has_saved_under_old_names_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("watchdog: {patience: 7}\nstages: {start_from: there, joint: {steps: 3}}\n")
    config = load_saved_config(path)
    assert (config.collapse.patience, config.stages.init_from) == (7, "there")
    assert not differing_settings(yaml.safe_load(path.read_text()), config)
    assert config_from_dict({"watchdog": {"patience": 7}}).collapse.patience == 7


def test_an_empty_address_in_a_mixture_is_told_by_its_setting():
    with refused(ConfigError, "data.mixture=['']"):
        load_config(None, ['data.mixture=[""]'])


@pytest.mark.parametrize(
    "override",
    [
        "data.mixture=[[1]]",
        "data.mixture_weights=[[1]]",
        "tokenizer.channel_multipliers=[[1]]",
        "tokenizer.channel_multipliers=[{a: 1}]",
        "stages.init_networks=[[a]]",
        "data.image_size=1000000",
    ],
)
def test_nested_lists_and_huge_images_are_refused_by_their_setting(override):
    with refused(ConfigError, override.partition("=")[0] + "="):
        load_config(None, [override])
