"""SGLang as an engine, behind a URL."""
