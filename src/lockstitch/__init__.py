"""Reasoning and reinforcement-learning post-training of diffusion language models.

The rooms: `lockstitch.sampling` draws trajectories, `lockstitch.stitching` combines their best steps, `lockstitch.rewards`
says what is right, `lockstitch.rl` trains, `lockstitch.recipes` launches. Importing the umbrella loads none of them.
"""

__version__ = "0.1.0"
