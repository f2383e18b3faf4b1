"""Conversion of models from PyTorch's files to this library and back."""
