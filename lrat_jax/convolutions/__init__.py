"""Convolutions by the fastest method on each platform, in the networks here (`conv2d`) and in any other (`rewrite`)."""
