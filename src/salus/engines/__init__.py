"""Where many independent pieces of work run: local processes, or Ray."""
