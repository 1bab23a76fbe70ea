"""The real server with its uploads in an S3-compatible store."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest
from clips import clip
from messages import planned_tokens, text, user
from requirements import require
from s3_server import s3_server
from serving import start, stop


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the bucket `videos`, and the environment that leads a server to it."""
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    with s3_server() as endpoint:
        import boto3

        settings = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
        for name, value in {**settings, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="videos")
        yield client


def bytes_of(bucket: Any) -> list[int]:
    """Sizes of the objects."""
    return [entry["Size"] for entry in bucket.list_objects_v2(Bucket="videos").get("Contents", [])]


def test_uploads_live_in_the_store(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPE_WARMUP", "0")
    data = clip(6, seed=61)
    running = start(tmp_path, tmp_path / "server.log", "--files-storage", "s3://videos/uploads")
    try:
        client = running.client
        made = client.files.create(file=("a.mp4", data), purpose="vision")
        assert len(data) in bytes_of(bucket)
        assert client.files.content(made.id).read() == data
        first = ask(client, made.id)
        for copy in (tmp_path / "files" / "spool").iterdir():
            copy.unlink()
        second = ask(client, made.id)  # has to be fetched
        assert second.choices[0].message.content == first.choices[0].message.content
        account = second.usage.model_extra["video"]
        assert account["i_tokens"] + account["p_tokens"] == planned_tokens(data)
        assert client.files.delete(made.id).deleted
        assert bytes_of(bucket) == []
        with pytest.raises(openai.NotFoundError):
            ask(client, made.id)
    finally:
        stop(running)


def ask(client: openai.OpenAI, name: str) -> Any:
    part = {"type": "file", "file": {"file_id": name}}
    return client.chat.completions.create(
        model="cope-tiny",
        messages=user(part, text("What moves?")),  # type: ignore[arg-type]  # the options are ours
        max_completion_tokens=4,
        temperature=0,
    )
