"""Comparison of several methods, each trained and evaluated over seeds, in one table and one plot."""
