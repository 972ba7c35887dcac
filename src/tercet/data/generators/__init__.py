"""Seeded generators of rows: templates and tables, no model."""
