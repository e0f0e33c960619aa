"""What scripts/train.py consists of: episodes to learn from, where they come from, and the trainer."""
