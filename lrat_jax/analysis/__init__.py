"""What a run's records say about its weights and attacks, and the plots of it."""
