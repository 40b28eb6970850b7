"""The edge: HTTP routes, the command line, settings, and the one place where everything is wired."""
