"""Secrets in command lines are hidden; addresses with a user part are refused."""

import pytest

from gear_dist.config.compare import default_settings
from gear_dist.config.loading import config_from_dict, load_config
from gear_dist.errors import ConfigError
from gear_dist.redaction import redact_command, redact_text, refuse_user
from gear_dist.storage.open import open_storage
from gear_dist.storage.s3_client import ENDPOINT_VARIABLES, make_client
from refusals import refused


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["train", "AWS_SECRET_ACCESS_KEY=abc"], ["train", "AWS_SECRET_ACCESS_KEY=***"]),
        (["--auth-key", "user,pass", "x"], ["--auth-key", "***", "x"]),
        (["--token=abc"], ["--token=***"]),
        (["--token", "--json"], ["--token", "--json"]),
        (["data.endpoint=http://k:s@h:1/x"], ["data.endpoint=http://***@h:1/x"]),
        (
            ["HF_TOKEN=abc", "stages.tokenizer.steps=3"],
            ["HF_TOKEN=***", "stages.tokenizer.steps=3"],
        ),
        (["tokenizer.misspelt=3"], ["tokenizer.misspelt=3"]),
        (["generator.token_dropout=0.2"], ["generator.token_dropout=0.2"]),
        (["log.usage_window_tokens=64"], ["log.usage_window_tokens=64"]),
        (["data.train=s3://bucket/a@b"], ["data.train=s3://bucket/a@b"]),
        (["other.api_key=abc"], ["other.api_key=***"]),
        (["--header", "Authorization: Bearer abc=="], ["--header", "Authorization: ***"]),
        (["--header=Authorization: Basic abc="], ["--header=Authorization: ***"]),
        (["--auth", "bearer", "abc", "x"], ["--auth", "***", "***", "x"]),
        (["Bearer abc="], ["Bearer ***"]),
        (["my_bearer=abc", "--bearer-file=abc"], ["my_bearer=***", "--bearer-file=***"]),
        (["PGPASS=abc", "--pwd", "abc"], ["PGPASS=***", "--pwd", "***"]),
        (["/data/auth/x=3", "s3://a/author"], ["/data/auth/x=3", "s3://a/author"]),
    ],
)
def test_secrets_are_hidden_and_settings_are_not(command, expected):
    assert redact_command(command, frozenset(default_settings())) == expected


def test_a_user_in_an_address_is_hidden_in_any_text():
    shown = redact_text("no answer from http://key:s3cr3t@host:9000/x, Bearer s3cr3t")
    assert shown == "no answer from http://***@host:9000/x, Bearer ***"


def test_addresses_may_hold_an_at_sign_after_the_host():
    refuse_user("data.train", "s3://bucket/a@b")
    refuse_user("run.name", "a@b")


WITH_USER = (
    "http://key:s3cr3t@host:9000",
    "http://key:s3/cr3t@host:9000",
    "http://s3cr3t@host",
    "key:s3cr3t@host:9000",
    "//key:s3cr3t@host",
)


@pytest.fixture(params=WITH_USER)
def endpoint(request, monkeypatch):
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return request.param


def check_refusal(raised, name):
    assert name in str(raised.value)
    assert "cr3t" not in str(raised.value)


def test_the_setting_of_an_endpoint_has_no_user(endpoint):
    with pytest.raises(ConfigError) as raised:
        load_config(None, [f"data.endpoint={endpoint}"])
    check_refusal(raised, "data.endpoint")
    with pytest.raises(ConfigError) as raised:
        make_client(endpoint)
    check_refusal(raised, "--endpoint")


@pytest.mark.parametrize("name", ENDPOINT_VARIABLES)
def test_the_variable_of_an_endpoint_has_no_user(name, endpoint, monkeypatch):
    monkeypatch.setenv(name, endpoint)
    with pytest.raises(ConfigError) as raised:
        make_client()
    check_refusal(raised, name)


def test_the_endpoint_of_a_configuration_file_has_no_user(endpoint, monkeypatch, tmp_path):
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {endpoint}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(ConfigError) as raised:
        make_client()
    check_refusal(raised, "endpoint_url")


@pytest.mark.parametrize(
    "setting", ["data.train", "data.validation", "checkpoint.address", "stages.init_from"]
)
def test_any_setting_with_a_user_in_its_address_is_refused(setting):
    with pytest.raises(ConfigError) as raised:
        load_config(None, [f"{setting}=s3://key:s3cr3t@bucket/x"])
    assert setting in str(raised.value)
    assert "s3cr3t" not in str(raised.value)


def test_lists_and_saved_configurations_are_looked_through():
    node = {"data": {"mixture": ["s3://a/b", "s3://key:s3cr3t@bucket/x"]}}
    with refused(ConfigError, "data.mixture", "AWS_ACCESS_KEY_ID"):
        config_from_dict(node)


def test_a_bucket_has_no_user():
    with pytest.raises(ConfigError) as raised:
        open_storage("s3://key:s3cr3t@bucket/x")
    assert "s3cr3t" not in str(raised.value)
