"""The convolutions of the networks, by the fastest way on each device."""
