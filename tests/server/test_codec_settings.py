from __future__ import annotations

import argparse
import os

import pytest
from clips import clip
from ray_cluster import ray_of

import cope_codec
from cope_codec import sandbox
from cope_codec.limits import Limits
from cope_codec.pool import CodecPool
from cope_server import cli, codec_settings
from cope_server.codec_settings import CodecSettings


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    codec_settings.add_arguments(parser)
    return parser.parse_args(words)


def test_options_go_before_the_environment_which_goes_before_the_defaults() -> None:
    environment = {"COPE_CODEC_WORKERS": "3", "COPE_CODEC_QUEUE": "7", "COPE_CODEC_CACHE_MB": ""}
    codec_settings.to_environment(parse("--codec-workers", "2", "--codec-timeout-s", "1.5"), environment)
    settings = CodecSettings.from_environment(environment)
    assert settings == CodecSettings(workers=2, queue=7, timeout_s=1.5)
    limits = settings.limits()
    assert (limits.wall_s, limits.memory_bytes) == (1.5, 1200 << 20)


def test_what_a_video_may_take_can_be_set() -> None:
    assert CodecSettings().limits() == Limits()
    environment: dict[str, str] = {}
    words = ("--codec-max-mb", "64", "--codec-max-seconds", "600", "--codec-max-gigapixels", "2.5")
    codec_settings.to_environment(parse(*words), environment)
    limits = CodecSettings.from_environment(environment).limits()
    assert (limits.max_bytes, limits.max_duration_s, limits.max_decoded_pixels) == (64 << 20, 600.0, 2_500_000_000)


def test_cores_are_shared_among_api_servers() -> None:
    cores = len(os.sched_getaffinity(0))
    assert CodecSettings().worker_count(1) == cores
    assert CodecSettings().worker_count(cores * 2) == 1
    assert CodecSettings(workers=5).worker_count(4) == 5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORKERS", "many", "COPE_CODEC_WORKERS must be a whole number, not 'many'"),
        ("WORKERS", "-1", "COPE_CODEC_WORKERS must be at least 0, not -1"),
        ("QUEUE", "0", "COPE_CODEC_QUEUE must be at least 1, not 0"),
        ("TIMEOUT_S", "nan", "COPE_CODEC_TIMEOUT_S must be at least 0.1, not nan"),
        ("EXECUTOR", "cloud", "COPE_CODEC_EXECUTOR must be one of local, ray, not 'cloud'"),
        ("SANDBOX", "on", "COPE_CODEC_SANDBOX must be one of try, require, off, not 'on'"),
        ("MAX_GIGAPIXELS", "0", "COPE_CODEC_MAX_GIGAPIXELS must be at least 0.001, not 0"),
        ("TIMEOUT_S", "soon", "COPE_CODEC_TIMEOUT_S must be a number, not 'soon'"),
    ],
)
def test_bad_values_are_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodecSettings.from_environment({f"COPE_CODEC_{name}": value})


@pytest.mark.parametrize(("word", "sandboxed"), [("try", True), ("off", False)])
def test_the_sandbox_is_the_one_asked_for(word: str, sandboxed: bool | str) -> None:
    environment: dict[str, str] = {}
    codec_settings.to_environment(parse("--codec-sandbox", word), environment)
    assert CodecSettings.from_environment(environment).sandboxed() == sandboxed
    assert CodecSettings.from_environment({}).sandboxed() is True
    assert CodecSettings(sandbox="require").sandboxed() == "require"


def test_a_required_sandbox_that_cannot_be_ends_serve_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "landlock_version", lambda: 0)
    monkeypatch.setenv("COPE_CODEC_SANDBOX", "try")
    assert cli.main(["serve", "--codec-sandbox", "require"]) == 2
    assert capsys.readouterr().err == "cope: COPE_CODEC_SANDBOX is 'require', but this machine lacks Landlock\n"


@pytest.mark.alone
def test_the_executor_is_the_one_asked_for() -> None:
    (want,) = cope_codec.open(clip(4)).gops(64)
    with CodecSettings(workers=1, queue=3, timeout_s=9).make_executor(1) as local:
        assert isinstance(local, CodecPool)
        assert (local.size, local.max_queue, local.limits.wall_s) == (1, 3, 9)
    with ray_of(2):
        from cope_codec.ray_pool import RayPool

        with CodecSettings(executor="ray").make_executor(2) as pool:
            assert isinstance(pool, RayPool)
            assert pool.size == 1
            pool.wait_until_warm()
            (gop,) = pool.open(clip(4)).gops(64)
            assert gop.residual.tobytes() == want.residual.tobytes()


def test_a_bad_option_ends_serve_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPE_CODEC_WORKERS", "1")
    assert cli.main(["serve", "--codec-workers", "x"]) == 2
    assert capsys.readouterr().err == "cope: COPE_CODEC_WORKERS must be a whole number, not 'x'\n"
