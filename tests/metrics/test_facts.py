"""Facts of an attempt, and the removal of secrets."""

import subprocess
from pathlib import Path

import pytest

from pretrain.metrics.facts import REDACTED, collect_facts, git_state, is_secret_name, redact


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "apiKey", "HF_TOKEN", "client_secret", "db.password", "AWS_SECRET_ACCESS_KEY"]
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["max_tokens", "tokenizer_hash", "num_kv_heads", "keep", "global_batch_tokens", "monkey"]
)
def test_names_of_settings_are_not_taken_for_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_secrets_are_removed_at_any_depth_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-abcdefgh")
    value = {
        "tokenizer": {"path": "t.json"},
        "rows": [{"api_key": "abc"}, "has canary-abcdefgh inside"],
        "url": "https://user:pass@example.org/x",
        "key": 3,
    }
    assert redact(value) == {
        "tokenizer": {"path": "t.json"},
        "rows": [{"api_key": REDACTED}, f"has {REDACTED} inside"],
        "url": f"https://{REDACTED}@example.org/x",
        "key": 3,
    }


def test_git_state_tells_the_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text("1")
    assert git_state(tmp_path) is None, "an untracked folder has no commit of its own"
    git("add", "a.py")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a.py").write_text("2")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}


def test_a_folder_outside_any_repository_has_no_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None


def test_facts_name_what_a_repetition_needs() -> None:
    facts = collect_facts(
        layout={"pp": 2}, seed=7, precision="fp32", device="cpu", manifest_hash="m", tokenizer_hash="t"
    )
    assert facts["seed"] == 7
    assert facts["layout"] == {"pp": 2}
    assert {"python", "torch"} <= set(facts["versions"])
    assert facts["hosts"]
