"""Programs nobody has read, run behind isolation and limits."""
