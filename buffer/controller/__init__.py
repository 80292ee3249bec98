"""The RL controller: adjusts the sampling while the run goes on."""
