"""Verifiers of mathematics."""
