"""The code that all other packages build on: errors, files, devices, processes, shapes."""
