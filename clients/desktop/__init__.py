"""The desktop application, a client like any other."""
