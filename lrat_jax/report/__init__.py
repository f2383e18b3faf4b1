"""The report: one HTML page on the settings and results of runs."""
