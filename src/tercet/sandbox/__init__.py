"""Untrusted programs, and functions that may hang, run in processes of their own within limits."""
