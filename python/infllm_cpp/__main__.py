"""``python -m infllm_cpp`` is ``infllm``."""

from .cli import main

main()
