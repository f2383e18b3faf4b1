"""What every other package builds on: errors, files, devices, processes, shapes."""
