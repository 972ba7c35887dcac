"""Room 1, curate: make rows, read public ones, filter, decontaminate, mix, and build preference pairs."""
