"""What Holdbook decides: pure functions over plain data, on the standard library alone."""
