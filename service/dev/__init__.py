"""For development: sample deliveries, their sender, a Redis of its own, and the command `dev`."""
