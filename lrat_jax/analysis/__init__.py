"""Analysis of what a run recorded about its weights and attacks, and plots."""
