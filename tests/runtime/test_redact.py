"""F16: a canary in environment, arguments, configuration and URLs reaches no sink."""

from __future__ import annotations

import pytest

from rlkit.runtime.redact import Redactor, is_secret_key


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hf_token",
        "WANDB_API_KEY",
        "model.hub.apiKey",
        "db-password",
        "client_secret",
        "Key",
    ],
)
def test_secret_keys(name: str) -> None:
    assert is_secret_key(name)


@pytest.mark.parametrize(
    "name",
    [
        "num_tokens",
        "max_memory_tokens",
        "keys",
        "key_dim",
        "token.count",
        "monkey",
        "secretary",
        "",
    ],
)
def test_other_keys(name: str) -> None:
    assert not is_secret_key(name)


def test_config_hides_strings_only_and_keeps_shape() -> None:
    config = {
        "a.token": "abc",
        "b.key": None,
        "c.key": 5,
        "d.password": "",
        "e": {"secret": ["x", "y"], "num_tokens": 3},
        "f.url": "https://user:pw@host/p?api_key=abc&page=2#top",
    }
    assert Redactor().config(config) == {
        "a.token": "***",
        "b.key": None,
        "c.key": 5,
        "d.password": "",
        "e": {"secret": ["***", "***"], "num_tokens": 3},
        "f.url": "https://***@host/p?api_key=***&page=2#top",
    }


def test_known_values_are_hidden_anywhere_longest_first() -> None:
    redactor = Redactor.collect(
        environ={"WANDB_API_KEY": "w4ndb-canary", "HOME": "/root", "HF_TOKEN": "short"},
        argv=["+model.hub_token='argv-canary'", "steps=12", "--flag"],
        config={"x.secret": "w4ndb-canary-longer", "optim.lr": 0.1},
    )
    text = redactor.text("w4ndb-canary-longer w4ndb-canary argv-canary /root short 12")
    assert text == "*** *** *** /root short 12"


def test_regex_characters_in_a_secret_are_literal() -> None:
    assert Redactor(["a.c+(x)"]).text("a.c+(x) abc+(x)") == "*** abc+(x)"


def test_text_without_secrets_is_untouched() -> None:
    text = "sorted(rows, key=len) https://huggingface.co/a/b?download=true see http://x/y@z"
    assert Redactor().text(text) == text
