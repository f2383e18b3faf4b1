"""Locally reweighted adversarial training (LRAT, arXiv:2106.15776), its baselines, and attacks to evaluate them."""
