"""Models for other tools: a folder in the precision and names of the base model, an adapter, a GGUF file."""
