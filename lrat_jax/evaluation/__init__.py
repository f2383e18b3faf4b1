"""Evaluation of a model: a suite of attacks on a whole split, and the files that it writes."""
