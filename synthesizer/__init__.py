"""Inverts a teacher into images and inserts them into the replay buffer."""
