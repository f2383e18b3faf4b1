"""The report: one HTML page on what runs were and what came out."""
