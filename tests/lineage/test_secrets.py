"""No secret may reach MLflow, and nothing innocent may be lost to the search for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.evidence import clean_remote
from pipelines.lineage.mirror import RunMirror
from pipelines.lineage.redact import MASK, Redactor, names_secret
from pipelines.lineage.tracker import Tracker
from tests.lineage.journals import Writer, stage

SECRETS = {
    "param": "sesame-open-1",
    "nested": "sesame-open-2",
    "remote": "sesame-open-3",
    "command": "sesame-open-4",
    "environment": "sesame-open-5",
    "uri": "sesame-open-6",
    "tail": "hf_abcdefghijklmnopqrstuvwx",
    "yaml": "sesame-open-7",
}


def test_no_secret_reaches_the_database_or_the_artifacts(store: Path) -> None:
    writer = Writer(store, "secret")
    params = {"hub_token": SECRETS["param"], "remote": {"api_key": SECRETS["nested"]}, "max_tokens": 77}
    writer.start(
        [stage("fetch", "source.model", **params)],
        "secret",
        git={
            "commit": "1",
            "branch": "b",
            "dirty": True,
            "remote": f"https://joe:{SECRETS['remote']}@git.example/r.git",
        },
        command=f"regraft run x --set params.token={SECRETS['command']} --password {SECRETS['command']}",
        machine={"env": {"WANDB_API_KEY": SECRETS["environment"]}},
        resolved={"name": "secret", "stages": {"fetch": {"with": {"hub_token": SECRETS["yaml"]}}}},
    )
    writer.begin("fetch")
    writer.knows("a.data", _dataset(f"https://joe:{SECRETS['uri']}@data.example/x"))
    tail = f"401 for {SECRETS['param']} with {SECRETS['tail']}\nAuthorization: Bearer {SECRETS['nested']}"
    error = {"message": f"token={SECRETS['command']} was refused", "fix": "", "tail": tail}
    writer.finish("fetch", "failed", reads={"data": "a.data"}, error=error)
    writer.end("failed")
    RunMirror(store, "secret", Tracker(store)).catch_up()
    files = [store / "mlflow.db", *store.glob("mlflow.db-*"), *(store / "mlflow-artifacts" / "secret").rglob("*")]
    content = b"".join(path.read_bytes() for path in files if path.is_file())
    assert [name for name, secret in SECRETS.items() if secret.encode() in content] == []
    assert b"git.example/r.git" in content
    assert b"max_tokens" in content


def _dataset(uri: str) -> dict[str, str]:
    return {"kind": "dataset", "stage": "a", "output": "data", "digest": "0" * 64, "uri": uri}


@pytest.mark.parametrize(
    "key", ["token", "hub_token", "HF_TOKEN", "api_key", "wandb-api-key", "password", "aws_secret"]
)
def test_secret_names(key: str) -> None:
    assert names_secret(key)


@pytest.mark.parametrize(
    "key", ["tokens", "max_tokens", "tokenizer", "pad_token", "eos_token", "loss_per_token", "key", "author", "keys"]
)
def test_innocent_names(key: str) -> None:
    assert not names_secret(key)


def test_innocent_text_is_untouched() -> None:
    text = "tokens=200000 lost at https://example.org/a?b=c for stage: student, eos_token='</s>' key: abc"
    assert Redactor().text(text) == text
    assert Redactor().document({"name": "x", "with": {"max_tokens": 5}}) == "name: x\nwith:\n  max_tokens: 5\n"


def test_values_caught_once_are_masked_everywhere() -> None:
    redactor = Redactor({"params": {"auth": {"password": "correct-horse"}}})
    assert redactor.text("login joe/correct-horse failed") == f"login joe/{MASK} failed"
    assert redactor.tree({"token": True, "secret": ["a", 5], "bos_token": "<s>"}) == {
        "token": True,
        "secret": [MASK, MASK],
        "bos_token": "<s>",
    }


@pytest.mark.parametrize(
    ("remote", "clean"),
    [
        ("https://x-access-token:abc@github.com/a/b.git", "https://github.com/a/b.git"),
        ("https://abc@github.com/a/b.git?token=1", "https://github.com/a/b.git"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
    ],
)
def test_remotes(remote: str, clean: str) -> None:
    assert clean_remote(remote) == clean
