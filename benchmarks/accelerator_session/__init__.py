"""Everything worth measuring on an accelerator that is at hand for minutes, in one command (`__main__`)."""
