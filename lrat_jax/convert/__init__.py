"""Models carried from PyTorch's files to this library's and back."""
