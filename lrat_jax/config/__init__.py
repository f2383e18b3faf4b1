"""The configuration: its fields and defaults, the suites, the checks, the command line."""
