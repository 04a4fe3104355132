"""What is written down of a run, and what differs between two of them. It runs nothing."""
