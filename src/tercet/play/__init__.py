"""The page of `tercet play`: one prompt through several models, why they differ, who is right, what to keep."""
