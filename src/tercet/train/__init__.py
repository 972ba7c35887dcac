"""Stages 2 to 4, teach: one loop, and for each stage who makes the steps and which pure function is the loss."""
