"""vLLM as an engine: in this process, as actors of Ray, or behind a URL."""
