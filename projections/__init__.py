"""Read models: tables that the log can rebuild at any time."""
