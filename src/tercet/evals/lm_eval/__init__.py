"""Both ways between us and lm-evaluation-harness."""
