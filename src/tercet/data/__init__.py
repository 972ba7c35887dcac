"""Data: make rows, read public ones, filter, decontaminate, mix, and build preference pairs."""
