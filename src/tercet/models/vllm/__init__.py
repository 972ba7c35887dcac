"""vLLM as a generator, in this process or in another."""
