"""vLLM's own server on the same model, options and threads as `cope serve`: what our front end is measured against.

`python -m cope_server.bench.bare [MODEL] [vLLM options]`. Our general plugin is loaded, for without it vLLM does not
know the model; our endpoint plugin is not, so the application, its middleware and its chat route are vLLM's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cope_server.commands import serve

PROGRAM = ("cope_server.bench.bare",)


def main(words: Sequence[str]) -> None:
    """Run the server until it is told to stop."""
    serve.set_environment()
    # Without the variable vLLM loads every general plugin and no endpoint plugin; ours have the same name.
    os.environ.pop("VLLM_PLUGINS", None)
    serve.start(serve.engine_arguments(words))


if __name__ == "__main__":
    main(sys.argv[1:])
