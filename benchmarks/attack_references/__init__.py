"""Our attacks compared with public implementations of the same attacks: one module for each table."""
