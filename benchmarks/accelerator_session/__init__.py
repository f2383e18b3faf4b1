"""All measurements for an accelerator that is available only for minutes, in one command (`__main__`)."""
