"""`cope demo`: a clip drawn on the spot, a question about its motion, a streamed answer, and what it cost."""

from __future__ import annotations

import argparse
import signal
import tempfile
from pathlib import Path

from cope_server import client
from cope_server.commands.ask import ask
from cope_server.commands.sample import add_clip_flags, description, draw_clip
from cope_server.commands.video_arguments import stdout
from cope_server.local_server import running_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope demo`."""
    parser.add_argument("--url", default=client.DEFAULT_URL, help=f"server to ask (default {client.DEFAULT_URL})")
    parser.add_argument("--question", help="another question than the clip's own")
    add_clip_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the clip, find or start a server, ask."""
    # A plain `kill` must stop the server too, so it takes the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cope-demo-") as folder:
        clip = Path(folder) / "demo.mp4"
        asked = draw_clip(arguments, clip)
        with running_server(arguments.url.rstrip("/"), Path(folder)) as url:
            model = client.first_model(url)
            stdout.print(f"clip      {description(arguments)}")
            stdout.print(f"question  {arguments.question or asked.text}", highlight=False)
            stdout.print("answer    ", end="")
            # At one keyframe per GOP, the whole clip's motion reaches the model as delta-tokens only.
            part = client.video_part(client.data_uri(clip), {"keyframes_per_gop": 1})
            ask(url, model, part, arguments.question or asked.text, 32)
            if not arguments.question:
                stdout.print(f"\nright     {asked.answer}", highlight=False)
    return 0
