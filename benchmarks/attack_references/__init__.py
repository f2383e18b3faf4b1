"""Our attacks beside public implementations of the same: one module for each."""
