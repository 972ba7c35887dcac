"""Evaluation: benchmarks as items, answers graded into scores with errors, and two checkpoints compared."""
