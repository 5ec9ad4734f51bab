"""What a model still finds in a long context, and what it costs: `infllm eval`."""
