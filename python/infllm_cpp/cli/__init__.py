"""The command `infllm`: its commands and their options, and a file for what each does."""

from .commands import app, main

__all__ = ["app", "main"]
