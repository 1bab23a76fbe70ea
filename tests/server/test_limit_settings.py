from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from cope_server import cli, limit_settings
from cope_server.limit_settings import LimitSettings


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    limit_settings.add_arguments(parser)
    return parser.parse_args(words)


def test_options_go_before_the_environment_which_goes_before_the_defaults() -> None:
    environment = {"COPE_LIMIT_REQUESTS": "3", "COPE_LIMIT_VIDEOS": "7", "COPE_LIMIT_BODY_MB": ""}
    limit_settings.to_environment(parse("--limit-requests", "2", "--limit-key-video-seconds", "60"), environment)
    settings = LimitSettings.from_environment(environment)
    assert settings == LimitSettings(requests=2, videos=7, key_video_seconds=60)


def test_every_limit_is_an_option_that_the_readme_explains() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for field in fields(LimitSettings):
        option = f"--limit-{field.name.replace('_', '-')}"
        assert f"limit_{field.name}" in vars(parse(option, "1"))
        both = "--limit-[key-]" + option.removeprefix("--limit-").removeprefix("key-")
        assert f"`{option} N`" in readme or f"`{both} N`" in readme, option


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("REQUESTS", "0", "COPE_LIMIT_REQUESTS must be at least 1, not 0"),
        ("KEY_REQUESTS", "-1", "COPE_LIMIT_KEY_REQUESTS must be at least 0, not -1"),
        ("VIDEO_SECONDS", "all", "COPE_LIMIT_VIDEO_SECONDS must be a whole number, not 'all'"),
    ],
)
def test_bad_values_are_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LimitSettings.from_environment({f"COPE_LIMIT_{name}": value})


def test_a_bad_option_ends_serve_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPE_LIMIT_VIDEOS", "1")
    assert cli.main(["serve", "--limit-videos", "x"]) == 2
    assert capsys.readouterr().err == "cope: COPE_LIMIT_VIDEOS must be a whole number, not 'x'\n"
