"""The contract between the services: everything they share passes through the replay buffer."""
