"""The `cope` command: finds the subcommand, imports only what it needs, and turns known errors into one line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cope_server import __version__

# name: (module, one-line help). A module has `add_arguments(parser)` and `run(arguments) -> int`.
_COMMANDS = {
    "serve": ("cope_server.commands.serve", "start the OpenAI-compatible server"),
    "ask": ("cope_server.commands.ask", "ask a running server about a video and stream the answer"),
    "demo": ("cope_server.commands.demo", "make a clip, start a server if none answers, ask it a question"),
    "plan": ("cope_server.commands.plan", "slots and tokens of a video, without decoding it"),
    "extract": ("cope_server.commands.extract", "codec primitives of a video: summary, arrays, picture"),
    "convert": ("cope_server.commands.convert", "join a base model and a delta-encoder, or take it out again"),
    "bench": ("cope_server.commands.bench", "measure"),
    "loadtest": ("cope_server.commands.loadtest", "measure a running server, compare two measurements"),
    "train": ("cope_training.command", "synthetic data, training, evaluation"),
    "sample": ("cope_server.commands.sample", "write a clip with motion to try things on"),
}
_EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `cope` script; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="cope", description="Video chat from codec primitives.")
    parser.add_argument("--version", action="version", version=f"cope-serve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in words if word in _COMMANDS), None)
    modules = {}
    for name, (module, text) in _COMMANDS.items():
        # `serve` hands everything on to vLLM, its --help too.
        sub = commands.add_parser(name, help=text, description=text, add_help=name != "serve")
        if name == chosen:
            modules[name] = importlib.import_module(module)
            modules[name].add_arguments(sub)
    if chosen == "serve":
        arguments, rest = parser.parse_known_args(words)
        arguments.rest = rest
    else:
        arguments = parser.parse_args(words)
    return run(modules[arguments.command].run, arguments)


def run(command: object, arguments: argparse.Namespace) -> int:
    """Run a command; mistakes of the user end in one line on stderr, not in a traceback."""
    assert callable(command)
    try:
        return int(command(arguments))
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        hint = _HINTS.get((error.name or "").split(".")[0])
        if hint is None:
            raise
        return _fail(f"{error.name} is not installed: {hint}")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        # CodecError and every refusal of ours is a ValueError with a message for people.
        code = getattr(error, "code", None)
        return _fail(f"{error} [{code}]" if code else str(error))


_HINTS = {
    "av": "pip install 'cope-serve[codec]'",
    "accelerate": "pip install 'cope-serve[training]'",
    "numba": "pip install 'cope-serve[codec]'",
    "numpy": "pip install 'cope-serve[codec]'",
    "pebble": "pip install 'cope-serve[codec]'",
    "ray": "pip install 'cope-serve[ray]'",
    "tensorboard": "pip install 'cope-serve[training]'",
    "matplotlib": "pip install 'cope-serve[plot]'",
    "vllm": "run `make setup`, or pip install 'cope-serve[engine]' on a machine with a GPU",
    "torch": "run `make setup`, or pip install 'cope-serve[engine]' on a machine with a GPU",
}


def _fail(message: str) -> int:
    print(f"cope: {message}", file=sys.stderr)  # noqa: T201 - this is the command line
    return _EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
