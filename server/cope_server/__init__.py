"""The HTTP side of cope-serve: the `cope` command and the routes, clocks and metrics on vLLM's app."""

__version__ = "0.1.0"
