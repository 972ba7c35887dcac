"""The declared evaluation tasks, one module for each suite or benchmark family."""
