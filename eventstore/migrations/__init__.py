"""The log's schema, step by step; applied to a live store, so every step only expands."""
