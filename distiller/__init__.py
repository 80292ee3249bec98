"""Trains a student on the replay buffer's images to answer like the teacher."""
