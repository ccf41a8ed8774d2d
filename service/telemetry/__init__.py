"""What the relay tells of itself: logs, metrics, traces, and a line for each delivery."""
