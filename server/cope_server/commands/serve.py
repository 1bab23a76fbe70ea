"""`cope serve`: vLLM's server in this process, with our plugins on and defaults that suit the machine."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cope_server import access, codec_settings, file_settings, limit_settings, request_log

_BUNDLED = "cope-tiny"
_DRAIN_S = 20  # for what runs at SIGTERM; Kubernetes kills after 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`cope serve [MODEL] [vLLM options]`: codec workers, files, limits, API keys, private media, logs are ours."""
    parser.usage = (
        "cope serve [MODEL | --preset NAME] [--codec-...] [--files-...] [--limit-...] [--api-key-file FILE] "
        "[--share-caches] [--allow-private-media HOST] [--log-format json] [vLLM options]      "
        "(cope serve --help=all lists vLLM's options)"
    )
    parser.allow_abbrev = False  # vLLM's options are not ours to guess at
    parser.add_argument("--preset", metavar="NAME")
    codec_settings.add_arguments(parser)
    file_settings.add_arguments(parser)
    limit_settings.add_arguments(parser)
    access.add_arguments(parser)
    request_log.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start the server and stay until it is told to stop."""
    codec_settings.to_environment(arguments)
    limit_settings.to_environment(arguments)
    words: list[str] = [*request_log.to_environment(arguments), *arguments.rest]
    file_settings.to_environment(arguments)
    set_environment()
    args = engine_arguments(words, arguments.preset)
    access.to_environment(arguments, args.api_key)
    args.api_key = None
    start(args)
    return 0


def engine_arguments(words: Sequence[str], preset: str | None = None) -> Any:
    """vLLM's own arguments, from a user's words and our defaults; `set_environment` has been called.

    Args:
        words: model and vLLM options.
        preset: as in `preset_directory`; None is the model that the words name, or the bundled one.

    Raises:
        ValueError: a preset and a model are given, or there is no such preset.
    """
    # vLLM reads its environment when it is imported, so nothing of it comes before this line.
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="cope serve", description=__doc__))
    given = parser.parse_args(words)
    named = given.model_tag or (given.model if given.model != parser.get_default("model") else None)
    if preset is None:
        model, chosen = model_directory(named), []
    else:
        model, chosen = preset_directory(preset, named), ["--load-format", "dummy"]
    args = parser.parse_args([*defaults(model), *chosen, *words])
    args.model_tag = args.model = str(model) if model else args.model_tag or args.model
    args.subparser = "serve"
    return args


def start(args: Any) -> None:
    """Run vLLM's server with its own arguments until it is told to stop."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.logger import configure_logging_from_args

    configure_logging_from_args(args)
    command = ServeSubcommand()
    command.validate(args)
    command.cmd(args)


def set_environment() -> None:
    """Switch our plugins on; whatever the user has set stays."""
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is None:
        os.environ["VLLM_PLUGINS"] = "cope"
    elif "cope" not in chosen.split(","):
        os.environ["VLLM_PLUGINS"] = f"{chosen},cope"
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", "cope")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if on_cpu():
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the tiny model needs far less
        # vLLM compiles its log-probability code even with --enforce-eager: 12 s within the first request that asks for
        # them, and the end of the engine on a machine without a C++ compiler.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        # vLLM's launcher would otherwise give every process one thread.
        os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))


def on_cpu() -> bool:
    """Whether the installed engine is the CPU build."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def model_directory(name: str | None) -> Path | None:
    """The bundled model if none is named; a local folder if the name is one; else None, for vLLM to resolve."""
    if name is None:
        from cope_model.tiny import bundled_model

        return bundled_model()
    path = Path(name)
    return path if path.is_dir() else None


def preset_directory(preset: str, named: str | None) -> Path:
    """A model of a preset's shape without weights, for which the engine draws random ones.

    Raises:
        ValueError: there is no such preset, or a model is named too.
    """
    if named is not None:
        raise ValueError(f"--preset {preset} is a model by itself: {named} cannot be served at the same time")
    from cope_model.shapes import cached_shape

    return cached_shape(preset)


def defaults(model: Path | None) -> list[str]:
    """Options that go before the user's own, which therefore win.

    Args:
        model: the model's folder, if it is local.
    """
    # vLLM allows no other site's pages either, since 0.32; before, it allowed all.
    chosen: list[str] = ["--enable-prompt-tokens-details", "--allowed-origins", "[]"]
    chosen += ["--shutdown-timeout", str(_DRAIN_S)]
    if on_cpu():
        # vLLM's block of 128 tokens on CPU is longer than a GOP, which would never be found in the prefix cache.
        chosen += ["--enforce-eager", "--block-size", "32", "--dtype", "float32"]
    if model is None:
        return chosen
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen += ["--served-model-name", served_name(model)]
    config = json.loads((model / "config.json").read_text())
    from cope_model.presets import LLAVA_FRAMES, geometry_from_config, is_llava_qwen

    video: dict[str, Any] = {}
    if is_llava_qwen(config):
        # The published files name no video processor, and hold no delta-encoder: dense frames, unless a part asks for
        # something else.
        video |= {"video_backend": "cope", "frames": LLAVA_FRAMES}
    if video or config.get("model_type") == "cope_videolm":
        # With the side known, primitives are made in the media threads; without it, one after another in the renderer.
        video["side"] = geometry_from_config(config).side
        chosen += ["--media-io-kwargs", json.dumps({"video": video})]
    return chosen


def served_name(model: Path) -> str:
    """What `/v1/models` calls a local model: its folder's name, without the version of a bundled one."""
    name = model.resolve().name
    return _BUNDLED if name.startswith(_BUNDLED) else name
